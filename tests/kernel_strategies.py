"""Hypothesis strategies of workloads: every rule's shapes, borders, tails and epilogues."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from hwprune.lower.expansion import join
from hwprune.lower.spec import PACKED, PLAIN, Attr, Step, TensorSpec, Workload
from tests.kernel_cases import packed, plain

Draw = st.DrawFn
UNARY = (
    *map(Step, ("relu", "silu", "sigmoid", "hardswish", "hardsigmoid", "gelu", "gelu_tanh")),
    *(Step("tanh"), Step("elu", (0.7,)), Step("leaky_relu", (0.1,))),
    *(Step("clamp", (0.0, 6.0)), Step("clamp", (-1.0, 3.0e38))),
)
PARAMETERS = {"bias": 1, "affine": 2, "prelu": 1}
BINARY = ("add", "sub", "mul")
Parts = tuple[tuple[Step, ...], list[TensorSpec], list[TensorSpec]]


@st.composite
def epilogues(draw: Draw, output: TensorSpec, *, channels: int, broadcast: bool = False) -> Parts:
    """Up to three steps with the parameters and the extra inputs that they read."""
    names = draw(st.lists(st.sampled_from(("unary", *PARAMETERS, *BINARY)), max_size=3))
    steps, params, extras = [], [], []
    for name in names:
        if name == "unary":
            steps.append(draw(st.sampled_from(UNARY)))
            continue
        steps.append(Step(name))
        if name in BINARY:
            extras.append(draw(_operands(output)) if broadcast else output)
        single = name == "prelu" and draw(st.booleans())
        params += [plain(1 if single else channels)] * PARAMETERS.get(name, 0)
    return tuple(steps), params, extras


@st.composite
def _operands(draw: Draw, output: TensorSpec) -> TensorSpec:
    """A packed operand, of the output's shape or broadcast over batch or image."""
    n, c, h, w = output.shape
    return draw(st.sampled_from([output, packed(n, c, 1, 1), packed(1, c, h, w)]))


@dataclass(frozen=True)
class Window:
    """How a convolution slides over its input."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def taps(self, axis: int) -> int:
        """Rows or columns from the first to the last tap."""
        return self.dilation[axis] * (self.kernel[axis] - 1) + 1

    def pads(self, axis: int) -> int:
        """Rows or columns of padding."""
        return self.padding[axis] + self.padding[axis + 2]

    def count(self, axis: int, size: int) -> int:
        """Windows along an axis."""
        return (size + self.pads(axis) - self.taps(axis)) // self.stride[axis] + 1


def windows(widest: int) -> st.SearchStrategy[Window]:
    """Kernels of up to `widest` columns."""
    heights, columns = st.sampled_from((1, 2, 3, 5)), st.sampled_from((1, 2, 3, widest))
    stride, dilation, pad = st.integers(1, 3), st.integers(1, 2), st.integers(0, 3)
    return st.builds(
        Window,
        st.tuples(heights, columns),
        st.tuples(stride, stride),
        st.tuples(dilation, dilation),
        st.tuples(pad, pad, pad, pad),
    )


@st.composite
def convolutions(draw: Draw, weights: tuple[int, int, int], window: Window) -> Workload:
    """A convolution of (inputs, outputs, groups) channels; its input is plain where it may be."""
    channels, outputs, groups = weights
    sizes = []
    for axis in (0, 1):
        least = max(1, window.taps(axis) - window.pads(axis))
        sizes.append(draw(st.integers(least, least + 16 * window.stride[axis])))
    batch = draw(st.integers(1, 2))
    flat = groups == 1 and channels <= 8 and draw(st.booleans())
    source = TensorSpec((batch, channels, *sizes), layout=PLAIN if flat else PACKED)
    output = packed(batch, outputs, *(window.count(axis, sizes[axis]) for axis in (0, 1)))
    steps, params, extras = draw(epilogues(output, channels=outputs, broadcast=True))
    weight = plain(outputs, channels // groups, *window.kernel)
    attrs = (("dilation", window.dilation), ("padding", window.padding), ("stride", window.stride))
    return Workload("conv2d", (source, *extras), output, (weight, *params), attrs, steps)


WIDTHS = st.integers(1, 40)
FEW = st.integers(1, 12)


def dense(window: st.SearchStrategy[Window]) -> st.SearchStrategy[Workload]:
    """Every output channel reads every input channel."""
    weights = st.tuples(WIDTHS, WIDTHS, st.just(1))
    return st.tuples(weights, window).flatmap(lambda drawn: convolutions(*drawn))


def grouped() -> st.SearchStrategy[Workload]:
    """Groups of several inputs or outputs, which need not fill whole vectors."""
    parts = st.tuples(FEW, FEW, st.integers(2, 6)).filter(lambda t: t[:2] != (1, 1))
    weights = parts.map(lambda t: (t[0] * t[2], t[1] * t[2], t[2]))
    return st.tuples(weights, windows(5)).flatmap(lambda drawn: convolutions(*drawn))


def depthwise(widest: int) -> st.SearchStrategy[Workload]:
    """One input and one output channel a group."""
    weights = st.integers(2, 70).map(lambda c: (c, c, c))
    return st.tuples(weights, windows(widest)).flatmap(lambda drawn: convolutions(*drawn))


@st.composite
def expansions(draw: Draw, widest: int) -> Workload:
    """A depthwise convolution and the 1x1 convolution that makes its input."""
    work = draw(depthwise(widest).filter(lambda work: work.inputs[0].layout == PACKED))
    wide = work.inputs[0]
    n, channels, *plane = wide.shape
    steps, params, extras = draw(epilogues(wide, channels=channels))
    if extras:
        steps, params = (Step("bias"), Step("silu")), [plain(channels)]
    inputs = draw(WIDTHS)
    attrs = (("dilation", (1, 1)), ("padding", (0, 0, 0, 0)), ("stride", (1, 1)))
    weights = (plain(channels, inputs, 1, 1), *params)
    expand = Workload("conv2d", (packed(n, inputs, *plane),), wide, weights, attrs, steps)
    return join(expand, work)


@st.composite
def linears(draw: Draw) -> Workload:
    lead = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    depth, outputs = draw(st.integers(1, 90)), draw(st.integers(1, 150))
    output = plain(*lead, outputs)
    steps, params, extras = draw(epilogues(output, channels=outputs))
    if len(lead) == 3:  # steps with parameters are taken only where the channels come last
        steps = tuple(s for s in steps if s.op not in PARAMETERS)
        params = []
    inputs = (plain(*lead, depth), *extras)
    return Workload("linear", inputs, output, (plain(outputs, depth), *params), (), steps)


@st.composite
def matmuls(draw: Draw) -> Workload:
    lead = draw(st.lists(st.integers(1, 3), max_size=2))
    rows, depth, columns = (draw(st.integers(1, 50)) for _ in range(3))
    inputs = (plain(*lead, rows, depth), plain(*lead, depth, columns))
    return Workload("matmul", inputs, plain(*lead, rows, columns))


@st.composite
def _pooled_axis(draw: Draw, dilated: bool, ceil: bool) -> tuple[int, ...]:
    """(kernel, stride, dilation, padding before and after, size, windows) as PyTorch has it."""
    kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 2)) if dilated else 1
    taps, before = dilation * (kernel - 1) + 1, draw(st.integers(0, kernel // 2))
    size = draw(st.integers(taps, taps + 12))
    more = stride - 1 if ceil and draw(st.booleans()) else 0
    count = (size + 2 * before - taps + more) // stride + 1
    count -= (count - 1) * stride >= size + before  # windows begin inside the image
    after = max((count - 1) * stride + taps - size - before, 0)
    return kernel, stride, dilation, before, after, size, count


@st.composite
def pools(draw: Draw) -> Workload:
    """Windows as PyTorch allows them, ceil_mode included where it has a kernel."""
    op, channels = draw(st.sampled_from(("max_pool2d", "avg_pool2d"))), draw(WIDTHS)
    maximum, include = op == "max_pool2d", draw(st.booleans())
    divisor = draw(st.sampled_from((None, None, 3)))
    axis = _pooled_axis(maximum, maximum or not include or divisor is not None)
    pairs = list(zip(draw(axis), draw(axis), strict=True))
    kernel, stride, dilation, before, after, sizes, out = pairs
    attrs: dict[str, Attr] = {"kernel": kernel, "stride": stride, "padding": before + after}
    more = {"dilation": dilation} if maximum else {"count_include_pad": include, "divisor": divisor}
    batch = draw(st.integers(1, 2))
    source, output = packed(batch, channels, *sizes), packed(batch, channels, *out)
    return Workload(op, (source,), output, (), tuple(sorted((attrs | more).items())))


@st.composite
def means(draw: Draw) -> Workload:
    batch, channels = draw(st.integers(1, 3)), draw(WIDTHS)
    source = packed(batch, channels, draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    output = draw(st.sampled_from([plain(batch, channels), packed(batch, channels, 1, 1)]))
    return Workload("global_avg_pool", (source,), output)


SHAPES = st.tuples(st.integers(1, 3), WIDTHS, st.integers(1, 7), st.integers(1, 7))


@st.composite
def concats(draw: Draw) -> Workload:
    n, _, h, w = draw(SHAPES)
    parts = draw(st.lists(st.one_of(WIDTHS, st.sampled_from((8, 16, 32))), min_size=1, max_size=4))
    output = packed(n, sum(parts), h, w)
    steps, params, _ = draw(epilogues(output, channels=sum(parts)))
    steps = tuple(s for s in steps if s.op not in BINARY)  # its inputs are its parts
    inputs = tuple(packed(n, c, h, w) for c in parts)
    return Workload("concat", inputs, output, tuple(params), (("axis", 1),), steps)


@st.composite
def slices(draw: Draw) -> Workload:
    shape, axis = draw(SHAPES), draw(st.sampled_from((1, 1, 0, 2, 3)))
    start = draw(st.integers(0, shape[axis] - 1))
    if axis == 1 and draw(st.booleans()):
        start = start // 8 * 8
    stop, step = draw(st.integers(start + 1, shape[axis])), draw(st.integers(1, 3))
    out = list(shape)
    out[axis] = len(range(start, stop, step))
    attrs = (("axis", axis), ("start", start), ("step", step), ("stop", stop))
    return Workload("slice", (packed(*shape),), packed(*out), (), attrs)


@st.composite
def shuffles(draw: Draw) -> Workload:
    n, _, h, w = draw(SHAPES)
    groups, each = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    spec = packed(n, groups * each, h, w)
    return Workload("shuffle", (spec,), spec, (), (("groups", groups),))


layouts = SHAPES.flatmap(
    lambda s: st.sampled_from(
        [
            Workload("layout", (plain(*s),), packed(*s)),
            Workload("layout", (packed(*s),), plain(*s)),
        ]
    )
)


@st.composite
def elementwise(draw: Draw) -> Workload:
    """Packed, or row-major of any rank; the channels are axis 1 of an image, else the last."""
    output = packed(*draw(SHAPES))
    if draw(st.booleans()):
        output = plain(*draw(st.lists(st.integers(1, 21), min_size=1, max_size=4)))
    axis = 1 if len(output.shape) == 4 else len(output.shape) - 1
    is_packed = output.layout == PACKED
    steps, params, extras = draw(
        epilogues(output, channels=output.shape[axis], broadcast=is_packed)
    )
    return Workload("elementwise", (output, *extras), output, tuple(params), (), steps)
