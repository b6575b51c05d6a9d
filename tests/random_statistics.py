"""Blocks of random networks whose statistics run over channels, and products that lose channels.

As tests/random_blocks.py, which has the others.
"""

from __future__ import annotations

from tests.random_blocks import ACTIVATIONS, WIDTHS, block
from tests.random_networks import Builder, Value


@block(4)
def standardised_conv(b: Builder, x: Value) -> Value:
    """A convolution whose weight is normalised row by row; dense, grouped or depthwise."""
    groups = b.choices.divisor(x.channels) if b.choices.chance(3) else 1
    width = groups * max(1, b.choices.pick(WIDTHS) // groups)
    weight = b.parameter(width, x.channels // groups, 3, 3)
    rows = b.aten("view", weight, [1, width, -1])
    gain = b.parameter(width, scale=0.3) if b.choices.below(2) else None
    rows = b.aten("batch_norm", rows, gain, None, None, None, True, 0.0, 1e-5, False)
    bias = b.parameter(width) if b.choices.below(2) else None
    weight = b.aten("reshape_as", rows, weight)
    return b.aten("conv2d", x, weight, bias, [1, 1], [1, 1], [1, 1], groups)


@block(4)
def response_norm(b: Builder, x: Value) -> Value:
    """The norm of a channel relative to the mean of all channels'."""
    norm = b.aten("linalg_vector_norm", x, 2, [2, 3], True)
    mean = b.aten("add.Tensor", b.aten("mean.dim", norm, [1], True), 1e-3)
    return b.aten("add.Tensor", x, b.aten("mul.Tensor", x, b.aten("div.Tensor", norm, mean)))


@block(4)
def spatial_attention(b: Builder, x: Value) -> Value:
    """A gate for every position from the mean and the maximum over channels."""
    y = b.aten("cat", [b.aten("mean.dim", x, [1], True), b.aten("amax", x, [1], True)], 1)
    y = b.aten("conv2d", y, b.parameter(1, 2, 3, 3, scale=0.3), None, [1, 1], [1, 1])
    return b.aten("mul.Tensor", x, b.aten("sigmoid", y))


@block(2, 3, 4)
def written_norm(b: Builder, x: Value) -> Value:
    """A layer or RMS norm, written out; its shift leaves no mean that is zero but for rounding."""
    dim = 1 if len(x.shape) == 4 else -1
    if b.choices.below(2):
        x = b.aten("sub.Tensor", x, b.aten("mean.dim", x, [dim], True))
    square = b.aten("mean.dim", b.aten("pow.Tensor_Scalar", x, 2), [dim], True)
    x = b.aten("mul.Tensor", x, b.aten("rsqrt", b.aten("add.Tensor", square, 1e-3)))
    behind = (1, 1) if dim == 1 else ()
    return b.aten("add.Tensor", x, b.parameter(x.shape[dim], *behind))


@block(3)
def tokens_mixed(b: Builder, x: Value) -> Value:
    """A linear layer or a convolution over the positions: channels only pass through."""
    count = x.shape[1]
    if b.choices.below(2):
        weight = b.parameter(count, count, 1, scale=count**-0.5)
        return b.aten("conv1d", x, weight, b.parameter(count) if b.choices.below(2) else None)
    y = b.aten("linear", b.aten("transpose.int", x, 1, 2), b.parameter(count, count, scale=0.5),
               b.parameter(count) if b.choices.below(2) else None)  # fmt: skip
    return b.aten("transpose.int", y, 1, 2)


@block(3)
def similarity(b: Builder, x: Value) -> Value:
    """Products of two branches, summed over channels that may not be zero where silenced."""

    def branch() -> Value:
        width = x.channels
        weight, bias = b.parameter(width, width, scale=0.3), b.parameter(width)
        y = b.aten("linear", x, weight, bias)
        kind = b.choices.below(4)
        if kind == 1:
            y = b.aten(b.choices.pick(ACTIVATIONS), y)
        elif kind == 2:
            y = tokens_mixed(b, y)
        elif kind == 3:
            scale = b.parameter(*b.choices.pick(((1,), (width,), (x.shape[1], 1))))
            name = b.choices.pick(("mul.Tensor", "add.Tensor"))
            y = b.aten(name, b.aten("sigmoid", y) if b.choices.below(2) else y, scale)
        return y

    scores = b.aten("matmul", branch(), b.aten("transpose.int", branch(), 1, 2))
    return b.aten("matmul", b.aten("softmax.int", scores, -1), x)
