"""Where tensors are packed: the layout of a kernel's operands and result.

Images made by convolutions and pools are packed and stay packed through every kernel that can
work on packed tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from hwprune.lower.movement import transposition
from hwprune.lower.root import Root, shape
from hwprune.lower.spec import LAST, PACKED, PLAIN
from hwprune.lower.view import PREFIX, View

PLAIN_CHANNELS = 8  # convolutions read plain images of at most so many channels directly

_PLAIN_ONLY = frozenset(("linear", "matmul", "layer_norm", "softmax", "roll"))
_LAST = frozenset(("linear", "layer_norm"))
_ALWAYS_PACKED = frozenset(("conv2d", "max_pool2d", "avg_pool2d", "global_avg_pool", "shuffle"))


def choose_layouts(
    root: Root,
    operands: Sequence[fx.Node],
    native: Mapping[fx.Node, str],
    result: fx.Node,
    flipped: bool = False,
) -> tuple[list[str], str]:
    """(the layout of every operand, the layout of the result).

    `native` says how the operands' producers leave them; `flipped` that a linear layer of pixels
    yields its channels at axis 1.
    """
    output = shape(result)
    if root.op == "concat" and (PACKED not in map(native.get, operands) or root.attrs["axis"] != 1):
        return [_row_view(native[n]) for n in operands], PLAIN
    if root.op == "attention":
        return [_row_view(native[n]) for n in operands], _row_result(result)
    if root.op in _LAST and native[operands[0]] == LAST:
        layout = PACKED if flipped else LAST
        return [LAST, *[layout] * (len(operands) - 1)], layout
    if root.op in _ALWAYS_PACKED:
        layouts = [PACKED] * len(operands)
        if root.op == "conv2d" and _reads_plain(root, native):
            layouts[0] = PLAIN
        return layouts, PACKED if len(output) == 4 else PLAIN
    layout = PACKED if _stays_packed(root, operands, native, output) else PLAIN
    return [layout] * len(operands), layout


def same_channels(mine: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Whether an operand can be packed like the result (it may broadcast over batch and space)."""
    return len(theirs) == 4 and theirs[1] == mine[1]


def _row_view(layout: str) -> str:
    """The layout itself if rows of the last dimension lie in memory as such, else row-major."""
    if layout.startswith(PREFIX):
        view = View.parse(layout)
        return layout if view.axes[-1] == view.rank - 1 else PLAIN
    return PLAIN


def _row_result(result: fx.Node) -> str:
    """The layout in which the only reader of a result, if it transposes it, has it row-major."""
    readers = list(result.users)
    dims = transposition(readers[0]) if len(readers) == 1 else None
    if dims is None or dims[-1] != len(dims) - 1:
        return PLAIN
    view = View(dims).normal(shape(result))
    return PLAIN if view.is_whole else view.text


def _reads_plain(root: Root, native: Mapping[fx.Node, str]) -> bool:
    """Whether a convolution reads a plain image of few channels, as the network's input is."""
    source, weight = root.inputs[0], root.weight
    assert weight is not None
    channels = shape(source)[1]
    ungrouped = shape(weight)[1] == channels
    return native[source] == PLAIN and channels <= PLAIN_CHANNELS and ungrouped


def _stays_packed(
    root: Root,
    operands: Sequence[fx.Node],
    native: Mapping[fx.Node, str],
    output: tuple[int, ...],
) -> bool:
    if root.op in _PLAIN_ONLY or any(len(shape(n)) != 4 for n in operands):
        return False
    if not any(native[n] == PACKED for n in operands):
        return False
    if root.op == "concat":
        return root.attrs["axis"] == 1
    return root.op != "elementwise" or all(same_channels(output, shape(n)) for n in operands)
