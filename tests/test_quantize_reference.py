"""Integer operators against their definitions: sums in plain loops or torch, one requantization."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hwprune.errors import HwpruneError
from hwprune.quantize import graph as ops
from hwprune.quantize.arithmetic import quantize_multiplier, quantize_multipliers, softmax_constants
from hwprune.quantize.graph import IntegerGraph, IntegerTensor
from hwprune.quantize.reference import execute, run
from tests.test_quantize_arithmetic import multiply_by_quantized_multiplier, truncating

FULL = (-128, 127)


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def tensor(array: np.ndarray, scale: float = 1.0, zero_point: int = 0) -> IntegerTensor:
    return IntegerTensor("t", (1, *array.shape[1:]), "int8", scale, zero_point)


def finish(acc: np.ndarray, multiplier, shift, zero_point: int, clamp=FULL) -> np.ndarray:
    """Requantize element by element; channels are the last axis."""
    multipliers = np.broadcast_to(multiplier, acc.shape).ravel()
    shifts = np.broadcast_to(shift, acc.shape).ravel()
    found = [
        multiply_by_quantized_multiplier(int(a), int(m), int(s)) + zero_point
        for a, m, s in zip(acc.ravel(), multipliers, shifts, strict=True)
    ]
    return np.clip(found, *clamp).reshape(acc.shape)


@pytest.mark.parametrize(
    ("groups", "stride", "padding", "dilation", "kernel"),
    [
        (1, (1, 1), (1, 1, 1, 1), (1, 1), (3, 3)),
        (1, (2, 1), (0, 1, 2, 0), (1, 1), (3, 2)),
        (6, (1, 2), (1, 1, 1, 1), (1, 1), (3, 3)),
        (3, (1, 1), (2, 2, 2, 2), (2, 2), (3, 3)),
        (2, (1, 1), (0, 0, 0, 0), (1, 1), (1, 1)),
    ],
)
def test_convolution(groups, stride, padding, dilation, kernel):
    rng = np.random.default_rng(1)
    x, out = integers(2, 7, 6, 6), 12
    weight = rng.integers(-127, 128, (out, *kernel, 6 // groups)).astype(np.int8)
    bias = rng.integers(-9000, 9000, out).astype(np.int32)
    multiplier, shift = quantize_multipliers(rng.uniform(1e-4, 4e-3, out))
    op = ops.Conv2d("c", ("x",), "y", "", weight, bias, multiplier, shift, stride, padding,
                    dilation, groups, (-100, 90))  # fmt: skip
    got = execute(op, [x], [tensor(x, zero_point=-7)], tensor(x, zero_point=5))
    image = torch.from_numpy(x.astype(np.float64) + 7).permute(0, 3, 1, 2)
    top, left, bottom, right = padding
    image = torch.nn.functional.pad(image, (left, right, top, bottom))
    kernels = torch.from_numpy(weight.astype(np.float64)).permute(0, 3, 1, 2)
    sums = torch.nn.functional.conv2d(
        image, kernels, torch.from_numpy(bias.astype(np.float64)), stride, 0, dilation, groups
    )
    acc = sums.permute(0, 2, 3, 1).numpy().astype(np.int64)
    assert got.dtype == np.int8
    assert np.array_equal(got, finish(acc, multiplier, shift, 5, (-100, 90)))


def test_linear_and_mean():
    x, weight = integers(3, 20), integers(4, 20, seed=1)
    bias = np.array([5, -300, 0, 70], np.int32)
    multiplier, shift = quantize_multipliers(np.array([0.001, 0.002, 0.0005, 0.02]))
    op = ops.Linear("l", ("x",), "y", "", weight, bias, multiplier, shift, FULL)
    got = execute(op, [x], [tensor(x, zero_point=9)], tensor(x, zero_point=-3))
    acc = (x.astype(np.int64) - 9) @ weight.astype(np.int64).T + bias
    assert np.array_equal(got, finish(acc, multiplier, shift, -3))

    image = integers(2, 5, 3, 4)
    multiplier, shift = quantize_multiplier(0.09)
    op = ops.Mean("m", ("x",), "y", "", multiplier, shift, FULL)
    out = IntegerTensor("y", (1, 4), "int8", 1.0, 2)
    acc = (image.astype(np.int64) - 9).sum((1, 2))
    got = execute(op, [image], [tensor(image, zero_point=9)], out)
    assert np.array_equal(got, finish(acc, multiplier, shift, 2))


def test_add_and_mul():
    x, y = integers(400), integers(400, seed=1)
    scales, zeros = (0.02, 0.05, 0.06), (3, -20, 11)
    widest = 2 * max(scales[:2])
    reals = [scales[0] / widest, scales[1] / widest, widest / (2**20 * scales[2])]
    pairs = [quantize_multiplier(r) for r in reals]
    op = ops.Add("a", ("x", "y"), "z", "", tuple(m for m, _ in pairs), tuple(s for _, s in pairs),
                 (-128, 100))  # fmt: skip
    got = execute(op, [x, y], [tensor(x, 0.02, 3), tensor(y, 0.05, -20)], tensor(x, 0.06, 11))
    total = sum(
        finish((v.astype(np.int64) - z) << 20, *pair, 0, (-(1 << 31), 1 << 31))
        for v, z, pair in zip((x, y), zeros[:2], pairs[:2], strict=True)
    )
    assert np.array_equal(got, finish(total, *pairs[2], 11, (-128, 100)))
    real = (x - 3.0) * 0.02 + (y + 20.0) * 0.05
    assert np.abs(np.clip(real / 0.06 + 11, -128, 100) - got).max() <= 0.51

    multiplier, shift = quantize_multiplier(0.02 * 0.05 / 0.1)
    op = ops.Mul("m", ("x", "y"), "z", "", multiplier, shift, FULL)
    got = execute(op, [x, y], [tensor(x, 0.02, 3), tensor(y, 0.05, -20)], tensor(x, 0.1, 0))
    product = (x.astype(np.int64) - 3) * (y.astype(np.int64) + 20)
    assert np.array_equal(got, finish(product, multiplier, shift, 0))


def test_pools_look_at_what_lies_inside():
    x = integers(2, 5, 6, 3)
    kernel, stride, (top, left, bottom, right) = (3, 2), (2, 2), (1, 0, 1, 1)
    rows, columns = (5 + top + bottom - 3) // 2 + 1, (6 + left + right - 2) // 2 + 1
    most, mean = (np.zeros((2, rows, columns, 3), np.int64) for _ in range(2))
    for n, i, j, c in np.ndindex(most.shape):
        r, s = max(2 * i - top, 0), max(2 * j - left, 0)
        window = x[n, r : 2 * i - top + 3, s : 2 * j - left + 2, c].astype(int)
        most[n, i, j, c] = window.max()
        total, half = int(window.sum()), window.size // 2
        mean[n, i, j, c] = truncating(total + (half if total > 0 else -half), window.size)
    pads = (top, left, bottom, right)
    for kind, wanted in ((ops.MaxPool, most), (ops.AvgPool, mean)):
        op = kind("p", ("x",), "y", "", kernel, stride, pads, FULL)
        assert np.array_equal(execute(op, [x], [tensor(x)], tensor(x)), wanted)


def test_prelu_lookup_pad_and_requantize():
    x = integers(2, 4, 4, 5)
    slope = np.array([-30, 0, 10, 100, 127], np.int8)
    (m0, s0), (m1, s1) = quantize_multiplier(0.8), quantize_multiplier(0.8 / 127)
    op = ops.Prelu("p", ("x",), "y", "", slope, (m0, m1), (s0, s1), FULL)
    centred = x.astype(np.int64) - 4
    above, below = finish(centred, m0, s0, 1), finish(centred * slope, m1, s1, 1)
    got = execute(op, [x], [tensor(x, zero_point=4)], tensor(x, zero_point=1))
    assert np.array_equal(got, np.where(centred >= 0, above, below))

    table = np.arange(127, -129, -1).astype(np.int8)
    op = ops.Lookup("l", ("x",), "y", "", table, "flip")
    assert np.array_equal(execute(op, [x], [tensor(x)], tensor(x)), -1 - x)
    op = ops.Pad("p", ("x",), "y", "", (1, 2, 0, 3), 4)
    padded = execute(op, [x], [tensor(x)], tensor(x))
    assert padded.shape == (2, 5, 9, 5)
    assert np.array_equal(padded[:, 1:, 2:6], x)
    assert (padded[:, 0] == 4).all()
    op = ops.Requantize("r", ("x",), "y", "", m0, s0, FULL)
    got = execute(op, [x], [tensor(x, zero_point=4)], tensor(x, zero_point=1))
    assert np.array_equal(got, finish(centred, m0, s0, 1))


@pytest.mark.parametrize("scale", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("width", [2, 10, 500])
def test_softmax_is_within_one_step(scale, width):
    x = integers(40, width)
    op = ops.Softmax("s", ("x",), "y", "", *softmax_constants(scale))
    got = execute(op, [x], [tensor(x, scale)], tensor(x, 1 / 256, -128)).astype(int) + 128
    real = np.exp((x - x.max(1, keepdims=True).astype(float)) * scale)
    real /= real.sum(1, keepdims=True)
    assert np.abs(np.minimum(real * 256, 255) - got).max() <= 1.0
    assert np.array_equal(np.take_along_axis(got, real.argmax(1)[:, None], 1)[:, 0], got.max(1))


def test_float_ends_and_wrong_inputs():
    tensors = (
        IntegerTensor("x", (1, 3), "float32"),
        IntegerTensor("q", (1, 3), "int8", 0.5, -1),
        IntegerTensor("y", (1, 3), "float32"),
    )
    steps = (ops.Quantize("q", ("x",), "q", ""), ops.Dequantize("y", ("q",), "y", ""))
    graph = IntegerGraph("ends", tensors, steps, ("x",), ("y",))
    x = np.array([[0.25, -0.75, 1e9], [0.2, -0.8, -1e9]], np.float32)
    wanted = [[0.5, -1.0, 64.0], [0.0, -1.0, -63.5]]  # halves away from zero, saturated
    assert run(graph, [x])[0].tolist() == wanted
    with pytest.raises(HwpruneError, match=r"input x: has shape \(2, 4\)"):
        run(graph, [np.zeros((2, 4), np.float32)])
    with pytest.raises(HwpruneError, match="type int8"):
        run(graph, [np.zeros((2, 3), np.int8)])
    with pytest.raises(HwpruneError, match="takes 1 inputs, not 2"):
        run(graph, [x, x])
