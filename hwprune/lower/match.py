"""Recognise the ATen calls that have kernels of their own: what each is as a `Workload`'s root.

In: an FX node of a folded graph. Out: a `Root` (operation, attributes, tensor operands), or
None for what only the fallback can do. Layouts are not decided here.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from hwprune.lower.epilogue import is_float
from hwprune.lower.functional import argument, packet
from hwprune.lower.match_transformer import FINDERS, written_attention
from hwprune.lower.movement import is_alias, is_split
from hwprune.lower.root import Root, is_parameter, shape
from hwprune.lower.spec import Attr

Pads = tuple[int, int, int, int]


def find_shuffle(node: fx.Node) -> Root | None:
    """A channel shuffle, found at its last reshape: channel i * groups + g comes from g * n + i."""
    swap = node.args[0] if is_alias(node) else None
    if not isinstance(swap, fx.Node) or packet(swap) != "aten.transpose" or len(swap.users) != 1:
        return None
    split, axes = swap.args[0], {int(a) % 5 for a in swap.args[1:3]}  # type: ignore[arg-type]
    if not isinstance(split, fx.Node) or not is_alias(split) or axes != {1, 2}:
        return None
    source = split.args[0]
    if not is_float(source) or not is_float(node):
        return None
    image, parts = shape(source), shape(split)  # type: ignore[arg-type]
    if len(image) != 4 or len(parts) != 5 or shape(node) != image:
        return None
    if (parts[0], parts[3], parts[4]) != (image[0], image[2], image[3]):
        return None
    return Root("shuffle", (source,), {"groups": parts[1]}, nodes=(split, swap))  # type: ignore[arg-type]


def pair(value: Any, default: Any = None) -> tuple[int, int]:
    """A size given as a number, one-element list or pair."""
    if value is None or value == []:
        value = default
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[0])) if len(value) == 1 else (int(value[0]), int(value[1]))


def find_root(node: fx.Node) -> Root | None:
    """The kernel whose main operation is this node."""
    finder = _FINDERS.get(packet(node))
    if finder is None or not is_float(node):
        return None
    return finder(node)


def _conv2d(node: fx.Node) -> Root | None:
    x, weight = node.args[0], node.args[1]
    bias = argument(node, 2, "bias")
    if len(shape(x)) != 4 or not is_parameter(weight):
        return None
    if bias is not None and not is_parameter(bias):
        return None
    stride = pair(argument(node, 3, "stride"), 1)
    padding = argument(node, 4, "padding", 0)
    dilation = pair(argument(node, 5, "dilation"), 1)
    if packet(node) == "aten.convolution" and (node.args[6] or any(node.args[7])):
        return None
    pads = _conv_pads(padding, shape(weight), dilation)
    x, pads, absorbed = _merge_pad(x, pads)
    attrs: dict[str, Attr] = {"stride": stride, "padding": pads, "dilation": dilation}
    return Root("conv2d", (x,), attrs, weight, bias, absorbed)


def _conv_pads(padding: Any, weight: tuple[int, ...], dilation: tuple[int, int]) -> Pads:
    """(top, left, bottom, right) of a convolution's padding argument ("same" included)."""
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        height, width = (d * (k - 1) for d, k in zip(dilation, weight[2:], strict=True))
        return (height // 2, width // 2, height - height // 2, width - width // 2)
    vertical, horizontal = pair(padding, 0)
    return (vertical, horizontal, vertical, horizontal)


def _merge_pad(x: fx.Node, pads: Pads) -> tuple[fx.Node, Pads, tuple[fx.Node, ...]]:
    """Take an explicit zero padding before a convolution into the convolution."""
    absorbed: tuple[fx.Node, ...] = ()
    while (extra := zero_pad(x)) is not None:
        pads = (pads[0] + extra[0], pads[1] + extra[1], pads[2] + extra[2], pads[3] + extra[3])
        absorbed = (x, *absorbed)
        x = x.args[0]  # type: ignore[assignment]
    return x, pads, absorbed


def zero_pad(node: fx.Node) -> Pads | None:
    """(top, left, bottom, right) of a zero padding of the image axes; None for anything else."""
    name = packet(node)
    if name not in ("aten.pad", "aten.constant_pad_nd"):
        return None
    mode = argument(node, 2, "mode", "constant") if name == "aten.pad" else "constant"
    fill = argument(node, 3 if name == "aten.pad" else 2, "value", 0)
    widths = [int(w) for w in node.args[1]]  # type: ignore[union-attr, arg-type]
    if mode != "constant" or fill not in (None, 0) or min(widths) < 0 or any(widths[4:]):
        return None
    if len(shape(node)) != 4:
        return None
    left, right, top, bottom = [*widths, 0, 0, 0, 0][:4]
    return (top, left, bottom, right)


def _linear(node: fx.Node) -> Root | None:
    x, weight = node.args[0], node.args[1]
    bias = argument(node, 2, "bias")
    if not is_parameter(weight) or (bias is not None and not is_parameter(bias)):
        return None
    if len(shape(x)) < 2 or not isinstance(x, fx.Node):
        return None
    return Root("linear", (x,), {}, weight, bias)


def _matmul(node: fx.Node) -> Root | None:
    written = written_attention(node)
    if written is not None:
        return written
    a, b = node.args[:2]
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return None
    if is_parameter(a) or is_parameter(b) or not is_float(a) or not is_float(b):
        return None
    if len(shape(a)) < 2 or shape(a)[:-2] != shape(b)[:-2]:
        return None
    return Root("matmul", (a, b))


def _max_pool2d(node: fx.Node) -> Root | None:
    x = node.args[0]
    if len(shape(x)) != 4:
        return None
    kernel = pair(node.args[1])
    stride = pair(argument(node, 2, "stride"), kernel)
    padding = pair(argument(node, 3, "padding"), 0)
    dilation = pair(argument(node, 4, "dilation"), 1)
    pads = _exact_pads(shape(x), shape(node), kernel, stride, padding, dilation)
    attrs: dict[str, Attr] = {"kernel": kernel, "stride": stride, "padding": pads}
    return Root("max_pool2d", (x,), {**attrs, "dilation": dilation})


def _exact_pads(
    before: tuple[int, ...],
    after: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Pads:
    """Padding under which flooring gives the output size (ceil_mode pads more below)."""
    ends = []
    for i in (0, 1):
        reach = (after[2 + i] - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1
        ends.append(max(reach - before[2 + i] - padding[i], 0))
    return (padding[0], padding[1], ends[0], ends[1])


def _avg_pool2d(node: fx.Node) -> Root | None:
    x = node.args[0]
    if len(shape(x)) != 4:
        return None
    kernel = pair(node.args[1])
    stride = pair(argument(node, 2, "stride"), kernel)
    padding = pair(argument(node, 3, "padding"), 0)
    include, divisor = argument(node, 5, "count_include_pad", True), argument(node, 6, "divisor")
    divisor = argument(node, 6, "divisor_override", divisor)
    pads = _exact_pads(shape(x), shape(node), kernel, stride, padding, (1, 1))
    if (pads[2] > padding[0] or pads[3] > padding[1]) and include and not divisor:
        return None  # ceil_mode counts only part of the last windows
    return _average(x, kernel, stride, pads, bool(include), divisor)


def _average(
    x: fx.Node,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pads: Pads,
    include: bool,
    divisor: int | None,
) -> Root:
    attrs: dict[str, Attr] = {"kernel": kernel, "stride": stride, "padding": pads}
    attrs |= {"count_include_pad": include, "divisor": divisor}
    return Root("avg_pool2d", (x,), attrs)


def _adaptive_pool(node: fx.Node) -> Root | None:
    x = node.args[0]
    before, after = shape(x), shape(node)
    average = "avg" in packet(node)
    if len(before) != 4 or before[2] % after[2] or before[3] % after[3]:
        return None
    if average and after[2:] == (1, 1):
        return Root("global_avg_pool", (x,))
    kernel = (before[2] // after[2], before[3] // after[3])
    if average:
        return _average(x, kernel, kernel, (0, 0, 0, 0), True, None)
    attrs: dict[str, Attr] = {"kernel": kernel, "stride": kernel, "padding": (0, 0, 0, 0)}
    return Root("max_pool2d", (x,), {**attrs, "dilation": (1, 1)})


def _mean(node: fx.Node) -> Root | None:
    x, dims = node.args[0], argument(node, 1, "dim")
    if not isinstance(dims, list | tuple) or node.kwargs.get("dtype") is not None:
        return None
    if len(shape(x)) != 4 or sorted(int(d) % 4 for d in dims) != [2, 3]:  # type: ignore[arg-type]
        return None
    return Root("global_avg_pool", (x,)) if is_float(x) else None


def _cat(node: fx.Node) -> Root | None:
    parts, axis = node.args[0], int(argument(node, 1, "dim", 0))
    if not all(map(is_float, parts)) or all(p.op == "get_attr" for p in parts):
        return None
    axis %= len(shape(node))
    if any(s == 0 for p in parts for s in shape(p)):  # type: ignore[union-attr]
        return None
    return Root("concat", tuple(parts), {"axis": axis})  # type: ignore[arg-type]


def _slice(node: fx.Node) -> Root | None:
    x = node.args[0]
    rank = len(shape(x))
    axis = int(argument(node, 1, "dim", 0)) % rank
    start, stop = argument(node, 2, "start"), argument(node, 3, "end")
    step = int(argument(node, 4, "step", 1))
    size = shape(x)[axis]
    start, stop, step = slice(start, stop, step).indices(size)
    return Root("slice", (x,), {"axis": axis, "start": start, "stop": stop, "step": step})


def _roll(node: fx.Node) -> Root | None:
    x, shifts, dims = node.args[0], argument(node, 1, "shifts"), argument(node, 2, "dims", [])
    rank = len(shape(x))
    if not dims or len({d % rank for d in dims}) != len(dims) or not is_float(x):
        return None
    axes = tuple(int(d) % rank for d in dims)
    return Root("roll", (x,), {"axes": axes, "shifts": tuple(int(s) for s in shifts)})


def _getitem(node: fx.Node) -> Root | None:
    """An element of chunk, split or split_with_sizes is a slice."""
    parts = node.args[0]
    if not isinstance(parts, fx.Node) or not is_split(parts):
        return None
    x = parts.args[0]
    axis = int(argument(parts, 2, "dim", 0)) % len(shape(x))  # type: ignore[arg-type]
    sizes = [int(t.shape[axis]) for t in parts.meta["val"]]
    index = int(node.args[1]) % len(sizes)  # type: ignore[arg-type]
    start = sum(sizes[:index])
    attrs: dict[str, Attr] = {"axis": axis, "start": start, "stop": start + sizes[index]}
    return Root("slice", (x,), {**attrs, "step": 1}, nodes=(parts,))  # type: ignore[arg-type]


_FINDERS = {
    "aten.conv2d": _conv2d,
    "aten.convolution": _conv2d,
    "aten.linear": _linear,
    "aten.matmul": _matmul,
    "aten.bmm": _matmul,
    "aten.mm": _matmul,
    "aten.max_pool2d": _max_pool2d,
    "aten.avg_pool2d": _avg_pool2d,
    "aten.adaptive_avg_pool2d": _adaptive_pool,
    "aten.adaptive_max_pool2d": _adaptive_pool,
    "aten.mean": _mean,
    "aten.cat": _cat,
    "aten.concat": _cat,
    "aten.slice": _slice,
    "aten.roll": _roll,
    "getitem": _getitem,
    **FINDERS,
}
