"""Calls that only say where elements lie: their results are views that readers may read directly.

In: an FX node and the layouts of the values made so far. Out: the value it is a view of, and the
layout that the node's tensor has there; None for what moves data.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from hwprune.lower.epilogue import is_float
from hwprune.lower.functional import argument, packet
from hwprune.lower.match import is_alias, is_split
from hwprune.lower.root import shape
from hwprune.lower.spec import LAST, PACKED, PLAIN, TensorSpec
from hwprune.lower.view import View

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_TRANSPOSES = frozenset(("aten.permute", "aten.transpose", "aten.t", "aten.numpy_T"))


def find_view(node: fx.Node, native: Mapping[fx.Node, str]) -> tuple[fx.Node, str] | None:
    """(the value that a node is a view of, the node's layout there)."""
    source, divided = _source(node)
    if source is None or source not in native or not is_float(source) or not is_float(node):
        return None
    if native[source] in (PACKED, LAST):
        return _packed(node, source, native[source])
    view = TensorSpec(shape(source), layout=native[source]).view
    if view is None:
        return None
    found = _viewed(node, source, view, divided)
    if found is None:
        return None
    found = found.normal(shape(node))
    return source, PLAIN if found.is_whole else found.text


def transposition(node: fx.Node) -> tuple[int, ...] | None:
    """New dimension i of a transpose is old dimension `transposition[i]`."""
    if packet(node) not in _TRANSPOSES or not isinstance(node.args[0], fx.Node):
        return None
    rank = len(shape(node.args[0]))
    if packet(node) == "aten.permute":
        return tuple(int(d) % rank for d in argument(node, 1, "dims"))
    dims = list(range(rank))
    a, b = (0, 1) if len(node.args) == 1 else (int(d) % rank for d in node.args[1:3])
    if rank > 1:
        dims[a], dims[b] = dims[b], dims[a]
    return tuple(dims)


def _source(node: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """(the tensor that a call takes apart, the call that splits it)."""
    name = packet(node)
    first = node.args[0] if node.args else None
    if name == "getitem" and isinstance(first, fx.Node):
        if packet(first) != "aten.unbind" and not is_split(first):
            return None, None
        return (first.args[0], first) if isinstance(first.args[0], fx.Node) else (None, None)
    known = name in _TRANSPOSES or name == "aten.select" or is_alias(node)
    return (first, None) if known and isinstance(first, fx.Node) else (None, None)


def _packed(node: fx.Node, source: fx.Node, layout: str) -> tuple[fx.Node, str] | None:
    """Channels of a packed image moved to the end, or back."""
    wanted, result = (TO_LAST, LAST) if layout == PACKED else (TO_FIRST, PACKED)
    return (source, result) if transposition(node) == wanted else None


def _viewed(node: fx.Node, source: fx.Node, view: View, divided: fx.Node | None) -> View | None:
    sizes = shape(source)
    if divided is not None:
        dim = int(argument(divided, 2 if is_split(divided) else 1, "dim", 0)) % len(sizes)
        parts, index = len(divided.meta["val"]), int(node.args[1])
        if not is_split(divided):
            return view.selected(dim, index % parts, sizes[dim])
        equal = sizes[dim] == parts * shape(node)[dim]
        return view.part(dim, index % parts, parts) if equal else None
    if packet(node) == "aten.select":
        dim = int(node.args[1]) % len(sizes)
        return view.selected(dim, int(node.args[2]) % sizes[dim], sizes[dim])
    dims = transposition(node)
    if dims is not None:
        return view.permuted(dims)
    return view.reshaped(sizes, shape(node))
