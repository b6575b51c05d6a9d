"""Where tensors are packed: the layout of a kernel's operands and result.

Images made by convolutions and pools are packed and stay packed through every kernel that can
work on packed tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from hwprune.lower.match import Root, shape
from hwprune.lower.spec import PACKED, PLAIN

PLAIN_CHANNELS = 8  # convolutions read plain images of at most so many channels directly

_ALWAYS_PACKED = frozenset(("conv2d", "max_pool2d", "avg_pool2d", "global_avg_pool", "shuffle"))


def choose_layouts(
    root: Root,
    operands: Sequence[fx.Node],
    native: Mapping[fx.Node, str],
    output: tuple[int, ...],
) -> tuple[list[str], str]:
    """(the layout of every operand, the layout of the result).

    `native` says how the operands' producers leave them; `output` is the result's shape.
    """
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
    if root.op in ("linear", "matmul") or any(len(shape(n)) != 4 for n in operands):
        return False
    if not any(native[n] == PACKED for n in operands):
        return False
    if root.op == "concat":
        return root.attrs["axis"] == 1
    return root.op != "elementwise" or all(same_channels(output, shape(n)) for n in operands)
