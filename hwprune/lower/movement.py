"""Calls that only move or rename elements: reshapes, splits, transposes."""

from __future__ import annotations

from torch import fx

from hwprune.lower.functional import argument, packet
from hwprune.lower.root import shape

_ALIASES = frozenset(
    (
        *("aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.squeeze"),
        *("aten.unsqueeze", "aten.unflatten"),
    )
)
_SPLITS = frozenset(
    ("aten.chunk", "aten.split", "aten.split_with_sizes", "aten.tensor_split", "aten.unsafe_chunk")
)
TRANSPOSES = frozenset(("aten.permute", "aten.transpose", "aten.t", "aten.numpy_T"))


def is_alias(node: fx.Node) -> bool:
    """Whether a node is another shape of its input, element for element in row-major order."""
    return packet(node) in _ALIASES


def is_split(node: fx.Node) -> bool:
    """Whether a node divides a tensor into slices along an axis."""
    return packet(node) in _SPLITS


def transposition(node: fx.Node) -> tuple[int, ...] | None:
    """New dimension i of a transpose is old dimension `transposition[i]`."""
    if packet(node) not in TRANSPOSES or not isinstance(node.args[0], fx.Node):
        return None
    rank = len(shape(node.args[0]))
    if packet(node) == "aten.permute":
        return tuple(int(d) % rank for d in argument(node, 1, "dims"))
    dims = list(range(rank))
    a, b = (0, 1) if len(node.args) == 1 else (int(d) % rank for d in node.args[1:3])
    if rank > 1:
        dims[a], dims[b] = dims[b], dims[a]
    return tuple(dims)
