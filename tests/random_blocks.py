"""The blocks that random networks are made of: each takes a value and yields another.

A block fits every value of its number of dimensions: images (N, C, H, W), sequences (N, L, C)
and vectors (N, C). To have a new operator tested in random company, add a block here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch

from tests.random_networks import Builder, Value

Block = Callable[[Builder, Value], Value]
BLOCKS: dict[int, list[Block]] = {2: [], 3: [], 4: []}
WIDTHS = (4, 6, 8, 12, 2, 3, 9, 1, 16)
ACTIVATIONS = ("relu", "sigmoid", "silu", "tanh", "hardswish", "elu")


def block(*dims: int) -> Callable[[Block], Block]:
    """Register a block for values with these numbers of dimensions."""

    def register(function: Block) -> Block:
        for ndim in dims:
            BLOCKS[ndim].append(function)
        return function

    return register


def inputs(b: Builder) -> list[Value]:
    """One to three inputs, images, vectors or words of a table, and a first layer of most."""
    given = _inputs(b)
    return given + [stem(b, value) for value in given for _ in range(1 + b.choices.below(2))]


def stem(b: Builder, x: Value) -> Value:
    """A layer whose outputs can be pruned."""
    width = b.choices.pick((8, 12, 6, 16, 4))
    if len(x.shape) < 4:
        return _linear(b, x, width)
    weight = b.parameter(width, x.channels, 3, 3, scale=0.3)
    return b.aten("conv2d", x, weight, b.parameter(width), [1, 1], [1, 1])


def _inputs(b: Builder) -> list[Value]:
    made = [b.input(3, 4, 4)]
    for _ in range(b.choices.pick((0, 0, 1, 2))):
        kind = b.choices.below(3)
        if kind == 0:
            made.append(b.input(b.choices.pick((3, 6)), 4, 4))
        elif kind == 1:
            made.append(b.input(6))
        else:
            words = b.input(4, words=5)
            made.append(words)
            table = b.parameter(5, b.choices.pick(WIDTHS))
            made.append(b.aten("embedding", table, words))
    return [v for v in made if v.results[0].is_floating_point()]


def head(b: Builder, x: Value) -> Value:
    """What an output is made of: mostly a linear layer over pooled features."""
    if b.choices.chance(6):
        return x
    if len(x.shape) == 4:
        x = b.aten("mean.dim", x, [2, 3]) if b.choices.below(2) else flatten(b, x)
    elif len(x.shape) == 3 and b.choices.below(2):
        x = b.aten("mean.dim", x, [1])
    return _linear(b, x, 3)


def _linear(b: Builder, x: Value, width: int) -> Value:
    size = x.shape[-1]
    weight = b.parameter(width, size, scale=size**-0.5)
    bias = b.parameter(width) if b.choices.below(3) else None
    return b.aten("linear", x, weight, bias)


def _groups(b: Builder, x: Value) -> int:
    return b.choices.divisor(x.channels) if b.choices.chance(3) else 1


def _view(b: Builder, x: Value, *sizes: int) -> Value:
    name = b.choices.pick(("reshape", "view")) if x.results[0].is_contiguous() else "reshape"
    return b.aten(name, x, [b.batch(x), *sizes])


# Layers with parameters


@block(4, 4, 4)
def conv(b: Builder, x: Value) -> Value:
    """Dense, grouped or depthwise; with an activation that may work in place."""
    groups = _groups(b, x)
    width = groups * max(1, b.choices.pick(WIDTHS) // groups)
    each, kernel = x.channels // groups, b.choices.pick((1, 3))
    weight = b.parameter(width, each, kernel, kernel, scale=(each * kernel**2) ** -0.5)
    bias = b.parameter(width) if b.choices.below(2) else None
    pad = kernel // 2
    y = b.aten("conv2d", x, weight, bias, [1, 1], [pad, pad], [1, 1], groups)
    return b.aten("relu_", y) if b.choices.chance(4) else y


@block(4)
def conv_transposed(b: Builder, x: Value) -> Value:
    """Dense or depthwise."""
    groups = x.channels if b.choices.chance(2) else 1
    each = 1 if groups > 1 else b.choices.pick(WIDTHS)
    weight = b.parameter(x.channels, each, 3, 3, scale=0.3)
    return b.aten("conv_transpose2d.input", x, weight, None, [1, 1], [1, 1], [0, 0], groups)


@block(2, 3)
def linear(b: Builder, x: Value) -> Value:
    """A linear layer over the last dimension."""
    return _linear(b, x, b.choices.pick(WIDTHS))


@block(2, 3)
def product(b: Builder, x: Value) -> Value:
    """`x @ weight`, with the bias added in the same call or not at all."""
    width = b.choices.pick(WIDTHS)
    weight = b.parameter(x.shape[-1], width, scale=x.shape[-1] ** -0.5)
    if len(x.shape) == 2 and b.choices.below(2):
        return b.aten("addmm", b.parameter(width), x, weight)
    return b.aten("matmul", x, weight)


@block(3)
def conv_1d(b: Builder, x: Value) -> Value:
    """A convolution that takes the tokens for channels."""
    groups = b.choices.divisor(x.shape[1]) if b.choices.chance(3) else 1
    width = groups * max(1, b.choices.pick(WIDTHS) // groups)
    weight = b.parameter(width, x.shape[1] // groups, 1, scale=0.5)
    return b.aten("conv1d", x, weight, b.parameter(width), [1], [0], [1], groups)


@block(2, 4)
def batch_norm(b: Builder, x: Value) -> Value:
    """With running statistics of its own."""
    size = x.shape[1]
    mean, var = b.buffer(torch.zeros(size).double()), b.buffer(torch.ones(size).double())
    scale, shift = b.parameter(size), b.parameter(size)
    return b.aten("batch_norm", x, scale, shift, mean, var, False, 0.1, 1e-5, False)


@block(4)
def group_norm(b: Builder, x: Value) -> Value:
    """Statistics over groups of channels."""
    groups = b.choices.divisor(x.channels)
    return b.aten("group_norm", x, groups, b.parameter(x.channels), b.parameter(x.channels))


@block(2, 3)
def layer_norm(b: Builder, x: Value) -> Value:
    """Statistics over the last dimension; of a single value they are rounding and nothing else."""
    size = x.shape[-1]
    if size < 2:
        return x
    return b.aten("layer_norm", x, [size], b.parameter(size), b.parameter(size))


@block(4)
def layer_norm_channels_last(b: Builder, x: Value) -> Value:
    """ConvNeXt's: channels go last and back, a linear layer between."""
    y = layer_norm_4d(b, b.aten("permute", x, [0, 2, 3, 1]))
    y = _linear(b, y, b.choices.pick(WIDTHS)) if b.choices.below(2) else y
    return b.aten("permute", y, [0, 3, 1, 2])


def layer_norm_4d(b: Builder, x: Value) -> Value:
    """Layer norm over the last dimension, or nothing."""
    return layer_norm(b, x) if b.choices.below(2) else x


@block(4)
def squeeze_and_excite(b: Builder, x: Value) -> Value:
    """A gate from the mean over space."""
    y = b.aten("mean.dim", x, [2, 3], True)
    hidden = b.choices.pick(WIDTHS)
    y = b.aten("conv2d", y, b.parameter(hidden, x.channels, 1, 1))
    y = b.aten("conv2d", b.aten("relu", y), b.parameter(x.channels, hidden, 1, 1))
    return b.aten("mul.Tensor", x, b.aten("sigmoid", y))


@block(2, 3, 4)
def scale_by_parameter(b: Builder, x: Value) -> Value:
    """Layer scale, shift, or a position's embedding: bare parameters that broadcast."""
    shapes = [x.shape[1:], (1,)]
    if len(x.shape) == 4:
        shapes += [(x.channels, 1, 1), (1, x.channels, 1, 1)]
    if len(x.shape) == 3:
        shapes += [(x.channels,), (1, 1, x.channels), (x.shape[1], 1)]
    name = b.choices.pick(("mul.Tensor", "add.Tensor"))
    return b.aten(name, x, b.parameter(*b.choices.pick(shapes)))


# Elementwise, between values


@block(2, 3, 4)
def activation(b: Builder, x: Value) -> Value:
    """Any of them; PReLU has a parameter per channel or one."""
    name = b.choices.pick((*ACTIVATIONS, "prelu"))
    if name != "prelu":
        return b.aten(name, x)
    return b.aten("prelu", x, b.parameter(b.choices.pick((x.shape[1], 1)), shared=False))


@block(2, 3, 4)
def meet(b: Builder, x: Value) -> Value:
    """A sum, product or maximum with another branch of the same shape."""
    other = b.choices.pick(b.partners(x) or [x])
    return b.aten(b.choices.pick(("add.Tensor", "mul.Tensor", "maximum")), x, other)


@block(4)
def residual(b: Builder, x: Value) -> Value:
    """A bottleneck whose result is added to its input."""
    hidden = b.choices.pick(WIDTHS)
    y = b.aten("conv2d", x, b.parameter(hidden, x.channels, 3, 3, scale=0.2), None, [1, 1], [1, 1])
    y = b.aten("conv2d", b.aten("relu", y), b.parameter(x.channels, hidden, 1, 1, scale=0.3))
    return b.aten("add.Tensor", x, y)


@block(2, 3)
def feed_forward(b: Builder, x: Value) -> Value:
    """A residual block of two linear layers, the first one gated by its second half or not."""
    hidden = b.choices.pick(WIDTHS)
    if b.choices.below(2):
        y = b.aten("gelu", _linear(b, x, hidden))
    else:
        gate, up = b.items(b.aten("chunk", _linear(b, x, 2 * hidden), 2, -1))
        y = b.aten("mul.Tensor", b.aten("silu", gate), up)
    return b.aten("add.Tensor", x, _linear(b, y, x.channels))


@block(2)
def outer(b: Builder, x: Value) -> Value:
    """Every product of two vectors' elements."""
    other = b.choices.pick([v for v in b.pool if len(v.shape) == 2] or [x])
    return b.aten("mul.Tensor", b.aten("unsqueeze", x, 2), b.aten("unsqueeze", other, 1))


@block(3)
def attention(b: Builder, x: Value) -> Value:
    """Heads from one projection, fused or written out, with a residual or without."""
    heads, size = b.choices.pick((1, 2, 3)), b.choices.pick((2, 4))
    count, inner = x.shape[1], heads * size
    y = _linear(b, x, 3 * inner)
    if b.choices.below(2):
        y = b.aten("reshape", y, [b.batch(x), count, 3, heads, size])
        q, k, v = b.items(b.aten("unbind.int", b.aten("permute", y, [2, 0, 3, 1, 4])))
    else:
        q, k, v = (
            b.aten("permute", b.aten("reshape", z, [b.batch(x), count, heads, size]), [0, 2, 1, 3])
            for z in b.items(b.aten("chunk", y, 3, -1))
        )
    if b.choices.below(2):
        y = b.aten("scaled_dot_product_attention", q, k, v)
    else:
        scores = b.aten("matmul", q, b.aten("transpose.int", k, -2, -1))
        scores = b.aten("mul.Tensor", scores, size**-0.5)
        y = b.aten("matmul", b.aten("softmax.int", scores, -1), v)
    y = b.aten("reshape", b.aten("transpose.int", y, 1, 2), [b.batch(x), count, inner])
    y = _linear(b, y, x.channels)
    return b.aten("add.Tensor", x, y) if b.choices.below(2) else y


# Channels join, part and change places


@block(2, 3, 4, 4)
def cat(b: Builder, x: Value) -> Value:
    """Two or three values behind each other, a concatenation of concatenations now and then."""
    dim = b.choices.pick((-1, 1)) if len(x.shape) == 3 else 1
    known = b.partners(x, free=dim % len(x.shape))[::-1] or [x]
    parts = [x, b.choices.pick(known)]
    if b.choices.chance(3):
        parts.append(b.choices.pick(known))
    return b.aten("cat", parts, dim)


@block(2, 3, 4)
def split_and_cat(b: Builder, x: Value) -> Value:
    """Pieces that change places; one of them goes through an activation."""
    size = x.shape[1]
    cut = 1 + b.choices.below(max(1, size - 1))
    if b.choices.below(2) and cut < size:
        parts = b.items(b.aten("split_with_sizes", x, [cut, size - cut], 1))
    else:
        parts = b.items(b.aten("chunk", x, b.choices.pick((2, 3)), 1))
    parts[0] = b.aten("silu", parts[0])
    return b.aten("cat", parts[::-1], 1)


@block(2, 3, 4)
def take(b: Builder, x: Value) -> Value:
    """A range of dimension 1, with a step now and then."""
    size = x.shape[1]
    start = b.choices.below(size)
    step = b.choices.pick((1, 2, 3))
    return b.aten("slice.Tensor", x, 1, start, b.choices.pick((2**63 - 1, size)), step)


@block(4)
def write_into_part(b: Builder, x: Value) -> Value:
    """Some channels are changed in place."""
    y = b.aten("mul.Tensor", x, 1.5)
    part = b.aten("slice.Tensor", y, 1, 0, 1 + b.choices.below(x.channels))
    b.aten("sigmoid_", part)
    return y


@block(2, 3, 4)
def rearrange(b: Builder, x: Value) -> Value:
    """Channels in another order, more than once, or between new ones."""
    size = x.shape[1]
    kind = b.choices.below(6)
    if kind == 0:
        return b.aten("flip", x, [1])
    if kind == 1:
        return b.aten("roll", x, [1], [1])
    if kind == 2:
        places = torch.tensor([b.choices.below(size) for _ in range(b.choices.pick((2, 4, 6)))])
        return b.aten("index_select", x, 1, b.buffer(places))
    if kind == 3:
        return b.aten("repeat_interleave.self_int", x, 2, 1)
    if kind == 4:
        return b.aten("repeat", x, [1, 2] + [1] * (len(x.shape) - 2))
    amounts = [0] * (2 * (len(x.shape) - 2)) + [b.choices.below(3), b.choices.below(3)]
    return b.aten("constant_pad_nd", x, amounts)


@block(4, 4)
def shuffle(b: Builder, x: Value) -> Value:
    """Channels of groups are interleaved, by hand or by the operator; other layers between."""
    groups = b.choices.divisor(x.channels)
    each, image = x.channels // groups, x.shape[2:]
    if b.choices.chance(3):
        return b.aten("channel_shuffle", x, groups)
    y = _view(b, x, groups, each, *image)
    if b.choices.chance(3):
        y = b.aten("mul.Tensor", y, b.parameter(*b.choices.pick(((each, 1, 1), (groups, 1, 1, 1)))))
    y = b.aten("transpose.int", y, 1, 2)
    return b.aten("reshape", y, [b.batch(x), x.channels, *image])


@block(2, 3, 4)
def reduce_groups(b: Builder, x: Value) -> Value:
    """Channels in groups, reduced over one of the two; or weighted by a softmax."""
    size = x.shape[1]
    groups = b.choices.divisor(size)
    y = b.aten("unflatten.int", x, 1, [groups, size // groups])
    dim = b.choices.pick((1, 2))
    kind = b.choices.below(3)
    if kind == 0:
        return b.aten("amax", y, [dim])
    if kind == 1:
        return b.aten("sum.dim_IntList", y, [dim])
    y = b.aten("softmax.int", y, dim)
    return b.aten("flatten.using_ints", y, 1, 2)


@block(2, 3, 4)
def stack(b: Builder, x: Value) -> Value:
    """Side by side, then one of them, the sum, or both in turn."""
    other = b.choices.pick(b.partners(x) or [x])
    dim = b.choices.pick((1, 2))
    y = b.aten("stack", [x, other], dim)
    kind = b.choices.below(3)
    if kind == 0:
        return b.aten("sum.dim_IntList", y, [dim])
    if kind == 1:
        return b.aten("select.int", y, dim, b.choices.below(2))
    return b.aten("flatten.using_ints", y, 1, 2)


@block(2, 3, 4)
def glu(b: Builder, x: Value) -> Value:
    """The first half of dimension 1, gated by the second."""
    if x.shape[1] % 2:
        return b.aten("relu", x)
    return b.aten("glu", x, 1)


# Space, and other numbers of dimensions


@block(4)
def pool(b: Builder, x: Value) -> Value:
    """Neighbours in space."""
    if b.choices.below(2):
        return b.aten("max_pool2d", x, [3, 3], [1, 1], [1, 1])
    return b.aten("avg_pool2d", x, [3, 3], [1, 1], [1, 1])


@block(4)
def pixels(b: Builder, x: Value) -> Value:
    """Space to channels or back."""
    if x.shape[2] % 2 == x.shape[3] % 2 == 0 and x.channels * 4 <= 48:
        return b.aten("pixel_unshuffle", x, 2)
    return b.aten("pixel_shuffle", x, 2) if x.channels % 4 == 0 else b.aten("relu", x)


@block(4)
def flatten(b: Builder, x: Value) -> Value:
    """All of an image as a vector, channels first or last."""
    if b.choices.chance(3):
        x = b.aten("permute", x, [0, 2, 3, 1])
    return b.aten("flatten.using_ints", x, 1, -1)


@block(4)
def image_mean(b: Builder, x: Value) -> Value:
    """The mean over space as a vector."""
    return b.aten("mean.dim", x, [2, 3])


@block(4)
def tokens(b: Builder, x: Value) -> Value:
    """Pixels as tokens, channels as tokens, or rows of pixels as tokens."""
    kind = b.choices.below(3)
    if kind == 0:
        return b.aten("transpose.int", b.aten("flatten.using_ints", x, 2, 3), 1, 2)
    if kind == 1:
        return b.aten("flatten.using_ints", x, 2, 3)
    y = b.aten("permute", x, [0, 2, 3, 1])
    return b.aten("reshape", y, [b.batch(x), x.shape[2], x.shape[3] * x.channels])


@block(3)
def transposed(b: Builder, x: Value) -> Value:
    """Tokens and channels change places."""
    return b.aten("transpose.int", x, 1, 2)


@block(3)
def class_token(b: Builder, x: Value) -> Value:
    """A learnt token before the others."""
    size = b.batch(x)
    token = b.aten("expand", b.parameter(1, 1, x.channels), [size, -1, -1])
    return b.aten("cat", [token, x], 1)


@block(3)
def one_token(b: Builder, x: Value) -> Value:
    """One token, or their mean."""
    if b.choices.below(2):
        return b.aten("select.int", x, 1, b.choices.below(x.shape[1]))
    return b.aten("mean.dim", x, [1])


@block(3)
def image_of_tokens(b: Builder, x: Value) -> Value:
    """Tokens as the pixels of an image, or channels as rows and columns."""
    rows = b.choices.divisor(x.shape[1])
    if b.choices.below(2):
        y = b.aten("transpose.int", x, 1, 2)
        return b.aten("reshape", y, [b.batch(x), x.channels, rows, x.shape[1] // rows])
    columns = b.choices.divisor(x.channels)
    return _view(b, x, x.shape[1], columns, x.channels // columns)


@block(2)
def sequence_of_vector(b: Builder, x: Value) -> Value:
    """A vector's channels as tokens with fewer channels."""
    count = b.choices.divisor(x.channels)
    return _view(b, x, count, x.channels // count)


@block(2)
def image_of_vector(b: Builder, x: Value) -> Value:
    """A vector as an image of one pixel, or of two by two."""
    if x.channels % 4 == 0 and b.choices.below(2):
        return _view(b, x, x.channels // 4, 2, 2)
    return _view(b, x, x.channels, 1, 1)


@block(3, 4)
def merge_with_batch(b: Builder, x: Value) -> Value:
    """Part of the values joins the batch for one operator, and parts from it again."""
    parts = b.choices.divisor(x.shape[1])
    count = b.call(operator.mul, b.batch(x), parts)
    y = b.aten("reshape", x, [count, x.shape[1] // parts, *x.shape[2:]])
    y = b.aten("silu", y)
    return b.aten("reshape", y, [b.batch(x), *x.shape[1:]])
