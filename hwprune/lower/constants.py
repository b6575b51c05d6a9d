"""Constant subgraphs evaluated: what does not depend on the inputs' values becomes a buffer.

In: a graph module, changed in place. Tensors that are made in the graph (of zeros, of another
tensor's shape) may be written in place before they are read; parameters may not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from hwprune.lower.functional import (
    constant_node,
    get_tensor,
    packet,
    substitute,
    value,
    writes_first,
)

CONSTANT = "constant_"  # the name of a buffer is this, and the node's that it takes the place of
CONSTANT_BYTES = 1 << 28  # larger results of constant subgraphs are computed at run time

_LIKE = frozenset(
    (
        *("aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.zeros_like"),
        *("aten.ones_like", "aten.full_like"),
    )
)
_MADE = _LIKE | {"aten.zeros", "aten.ones", "aten.full"}


def evaluate_constants(module: fx.GraphModule) -> None:
    """Replace calls on nothing but parameters and constants by buffers, named as the nodes."""
    for node in list(module.graph.nodes):
        if not _is_constant_call(node, set()):
            continue
        tensor = _Values(module).of(node)
        if isinstance(tensor, Tensor):
            constant = _constant(module, node, node, tensor)
            name = node.name
            substitute(node, constant)
            constant._rename(name)


def evaluate_written(module: fx.GraphModule) -> None:
    """Replace tensors that are made in the graph, and what is computed of them, by buffers.

    Every reader gets the values of the moment when it reads.
    """
    made = _made(module.graph)
    values = _Values(module)
    frozen: dict[tuple[fx.Node, int], fx.Node] = {}
    names: dict[str, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node in made:
            values.of(node)
            continue
        for source in [s for s in node.all_input_nodes if s in made]:
            tensor = values.of(source)
            key = (source, tensor._version)
            if key not in frozen:
                frozen[key] = _constant(module, source, node, tensor.clone())
                names.setdefault(source.name, frozen[key])
            node.replace_input_with(source, frozen[key])
    for node in reversed(list(module.graph.nodes)):
        if node in made:
            module.graph.erase_node(node)
    for name, constant in names.items():
        constant._rename(name)


def _made(graph: fx.Graph) -> set[fx.Node]:
    """The calls that depend on tensors made in the graph and else only on parameters.

    None if one of these tensors is also written with values of the inputs.
    """
    known: set[fx.Node] = set()
    made: set[fx.Node] = set()
    for node in graph.nodes:
        if writes_first(node) and node.args[0] not in made:
            continue
        if not _is_constant_call(node, known):
            if writes_first(node):
                return set()
            continue
        known.add(node)
        if packet(node) in _MADE or any(s in made for s in node.all_input_nodes):
            made.add(node)
    return made


class _Values:
    """The values of constant calls, each computed once, when it is asked for."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.values: dict[fx.Node, Any] = {}

    def of(self, node: fx.Node) -> Any:
        """The value of a parameter or of a constant call."""
        if node.op == "get_attr":
            return get_tensor(self.module, str(node.target))
        if node not in self.values:
            load = _shape_only if packet(node) in _LIKE else self.of
            args, kwargs = fx.map_arg((node.args, node.kwargs), load)
            with torch.no_grad():
                self.values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return self.values[node]


def _shape_only(node: fx.Node) -> Tensor:
    """A tensor of a value's shape and type that takes no memory."""
    like = value(node)
    return torch.zeros((), dtype=like.dtype).expand(tuple(like.shape))


def _constant(module: fx.GraphModule, node: fx.Node, before: fx.Node, tensor: Tensor) -> fx.Node:
    """A constant with a node's meta data."""
    constant = constant_node(module, before, f"{CONSTANT}{node.name}", tensor.contiguous())
    constant.meta = {**node.meta, "val": tensor}
    return constant


def _is_constant_call(node: fx.Node, known: set[fx.Node]) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded in node.target.tags:
        return False
    result = node.meta.get("val")
    if not isinstance(result, Tensor) or result.numel() * result.itemsize > CONSTANT_BYTES:
        return False
    if packet(node) in _LIKE:
        return node.all_input_nodes == [node.args[0]]
    return all(source.op == "get_attr" or source in known for source in node.all_input_nodes)
