"""Residual branches: which sums x + f(x) may become x, found in a graph and removed from one.

In: a graph and its `Coupling`. Out: `Branch`es, or the graph without some of them. A branch is
all that computes nothing but f(x): without the sum, nothing reads it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from hwprune.coupling import Branch, Coupling
from hwprune.program import tensor_value
from hwprune.rules.engine import argument, operator_names
from hwprune.rules.movement import is_view, is_written, mutates

_Nodes = set[fx.Node]
_Names = Mapping[str, frozenset[str]]


def parts(branch: Branch, add: fx.Node, given: Sequence[Any]) -> tuple[Any, Any]:
    """x and f(x) among what the sum x + f(x) is given."""
    sides: Any = add.args[:2]
    at = [side.name for side in sides].index(branch.output)
    return given[1 - at], given[at]


def find_branches(graph: fx.Graph, coupling: Coupling) -> tuple[Branch, ...]:
    """The residual branches of a graph that have parameters of their own, inner ones first.

    f(x) has the shape of x and depends on it, or on what x is the sum of. What is within writes
    to nothing outside.
    """
    before = _Ancestors(graph)
    readers, places = _readers(graph, coupling), _places(coupling)
    streams: dict[fx.Node, list[fx.Node]] = {}
    names: Counter[str] = Counter()
    found: list[Branch] = []
    for add in graph.nodes:
        for output, shortcut in _sides(add):
            stream = [shortcut, *streams.get(shortcut, [])]
            nodes = _only_for(output, add) if before.any_of(stream, output) else set()
            inside = frozenset(n.name for n in nodes)
            parameters = frozenset(p for p, where in readers.items() if where <= inside)
            if not parameters or any(_writes_outside(n, nodes, output) for n in [*nodes, add]):
                continue
            groups = tuple(
                g.name
                for g in coupling.groups
                if places[g.name] <= inside and {s.parameter for s in g.sites} <= parameters
            )
            name = _name(graph, nodes, parameters)
            names[name] += 1
            name = name if names[name] == 1 else f"{name}#{names[name]}"
            found.append(Branch(name, add.name, output.name, inside, parameters, groups))
            streams[add] = stream
            break
    return tuple(found)


def remove_branches(graph: fx.Graph, branches: Sequence[Branch]) -> None:
    """Put x in the place of x + f(x), and erase what only f(x) needed."""
    for branch in reversed(branches):
        nodes = {n.name: n for n in graph.nodes}
        add = nodes.get(branch.add)
        if add is None:
            continue  # it went with the branch that it lies in
        within = {n for n in graph.nodes if n.name in branch.nodes}
        shortcut = next(a for a in add.all_input_nodes if a not in within)
        add.replace_all_uses_with(_in_place_of(add, shortcut, within))
        graph.erase_node(add)
        for node in reversed(graph.nodes):
            is_size = isinstance(node.meta.get("val"), int | torch.SymInt)
            if not node.users and (node in within or is_size):
                graph.erase_node(node)


def _in_place_of(add: fx.Node, shortcut: fx.Node, within: _Nodes) -> fx.Node:
    """What the readers of a sum read without its branch: a copy, if x is written to elsewhere."""
    if mutates(add) and add.args[0] is shortcut:
        return shortcut  # the sum lay in its memory before
    others = [u for u in shortcut.users if u is not add and u not in within]
    later = any(mutates(u) or (is_view(u) and is_written(u)) for u in others)
    if not later and not is_written(add):
        return shortcut
    with add.graph.inserting_before(add):
        copied = add.graph.call_function(torch.ops.aten.clone.default, (shortcut,))
    copied.meta = dict(add.meta)
    return copied


class _Ancestors:
    """Which nodes of a graph every node depends on."""

    def __init__(self, graph: fx.Graph) -> None:
        self.bit = {node: 1 << i for i, node in enumerate(graph.nodes)}
        self.sets: dict[fx.Node, int] = {}
        for node in graph.nodes:
            self.sets[node] = self.bit[node]
            for arg in node.all_input_nodes:
                self.sets[node] |= self.sets[arg]

    def any_of(self, nodes: Iterable[fx.Node], node: fx.Node) -> bool:
        """Whether a node depends on one of these."""
        return any(self.sets[node] & self.bit[n] for n in nodes)


def _sides(add: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """(f(x), x) both ways round, where a node is a plain sum and a computed x has its shape."""
    if add.op != "call_function" or operator_names(add)[0] != "add.Tensor":
        return []
    pair = add.args[:2]
    both = [a for a in pair if isinstance(a, fx.Node) and a.op == "call_function"]
    if len(both) < 2 or both[0] is both[1] or argument(add, 2, "alpha", 1) != 1:
        return []
    return [(a, b) for a, b in (both[::-1], both) if _same(b, add)]


def _same(a: fx.Node, b: fx.Node) -> bool:
    """Whether two values have one shape and type."""
    x, y = tensor_value(a), tensor_value(b)
    return x is not None and y is not None and (x.shape, x.dtype) == (y.shape, y.dtype)


def _only_for(output: fx.Node, add: fx.Node) -> _Nodes:
    """What is needed for one side of a sum alone; nothing if that is read elsewhere too."""
    if list(output.users) != [add]:
        return set()
    nodes, waiting = {output}, [output]
    while waiting:
        for arg in waiting.pop().all_input_nodes:
            alone = arg not in nodes and all(user in nodes for user in arg.users)
            if alone and arg.op in ("call_function", "get_attr"):
                nodes.add(arg)
                waiting.append(arg)
    return nodes


def _writes_outside(node: fx.Node, nodes: _Nodes, output: fx.Node) -> bool:
    """Whether a call changes, in place, what does not lie within a branch."""
    if not mutates(node):
        return False
    changed = node.args[0]
    if node not in nodes and changed is not output:
        return False  # the sum itself, in the memory of x
    return not _owns(nodes, changed)


def _owns(nodes: _Nodes, value: object) -> bool:
    """Whether the memory of a value was made by one of these nodes."""
    if not isinstance(value, fx.Node) or value not in nodes or value.op != "call_function":
        return False
    return not is_view(value) or _owns(nodes, value.args[0])


def _readers(graph: fx.Graph, coupling: Coupling) -> _Names:
    """The nodes that hold each parameter or buffer, under each of its names."""
    holders: dict[str, set[str]] = defaultdict(set)
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target) in coupling.aliases:
            holders[coupling.aliases[str(node.target)]].add(node.name)
    return {name: frozenset(holders[first]) for name, first in coupling.aliases.items()}


def _places(coupling: Coupling) -> _Names:
    """The nodes whose values each group has channels of."""
    places: dict[str, set[str]] = {g.name: set() for g in coupling.groups}
    for (node, _), axis in coupling.axes.items():
        for group in np.unique(coupling.unit_group[axis.units[axis.units >= 0]]):
            places[coupling.groups[group].name].add(node)
    return {name: frozenset(nodes) for name, nodes in places.items()}


def _name(graph: fx.Graph, nodes: _Nodes, parameters: frozenset[str]) -> str:
    """After the layer that comes first in a branch."""
    for node in graph.nodes:
        for arg in node.all_input_nodes if node in nodes else ():
            if arg.op == "get_attr" and str(arg.target) in parameters:
                return f"branch:{str(arg.target).rpartition('.')[0] or arg.target}"
    raise AssertionError(nodes)
