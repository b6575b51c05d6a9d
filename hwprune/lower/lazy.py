"""Calls that only say where elements lie: their results are views that readers may read directly.

In: an FX node and the layouts of the values made so far. Out: the value it is a view of, and the
layout that the node's tensor has there; None for what moves data.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from hwprune.lower.epilogue import is_float
from hwprune.lower.functional import argument, packet
from hwprune.lower.movement import TRANSPOSES, is_alias, is_split, transposition
from hwprune.lower.root import shape
from hwprune.lower.spec import LAST, PACKED, PLAIN, TensorSpec
from hwprune.lower.view import View

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


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


def _source(node: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """(the tensor that a call takes apart, the call that splits it)."""
    name = packet(node)
    first = node.args[0] if node.args else None
    if name == "getitem" and isinstance(first, fx.Node):
        if packet(first) != "aten.unbind" and not is_split(first):
            return None, None
        return (first.args[0], first) if isinstance(first.args[0], fx.Node) else (None, None)
    known = name in TRANSPOSES or name in ("aten.select", "aten.slice") or is_alias(node)
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
    if packet(node) == "aten.slice":
        return _every(node, sizes, view)
    dims = transposition(node)
    if dims is not None:
        return view.permuted(dims)
    return view.reshaped(sizes, shape(node))


def _every(node: fx.Node, sizes: tuple[int, ...], view: View) -> View | None:
    """A slice that takes every step-th index of a whole dimension, as merging patches does."""
    dim = int(argument(node, 1, "dim", 0)) % len(sizes)
    bounds = slice(argument(node, 2, "start"), argument(node, 3, "end"))
    step = int(argument(node, 4, "step", 1))
    start, stop, _ = bounds.indices(sizes[dim])
    whole = start < step and stop > sizes[dim] - step + start and sizes[dim] % step == 0
    return view.every(dim, start, step) if step > 1 and whole else None
