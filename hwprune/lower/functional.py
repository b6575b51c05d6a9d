"""Reading and editing a graph: arguments and constants by name, no in-place operators, no no-ops.

In: a graph module, changed in place; its parameters are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from hwprune.capture import source_line
from hwprune.errors import LoweringError

_IDENTITY = frozenset(
    ("aten.contiguous", "aten.clone", "aten.detach", "aten.alias", "aten.lift_fresh_copy")
)
_DROPOUT = frozenset(("aten.dropout", "aten.feature_dropout", "aten.alpha_dropout"))
_SAME_SHAPE = frozenset(
    (
        *("aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.squeeze"),
        *("aten.expand", "aten.to", "aten._to_copy", "aten.adaptive_avg_pool2d"),
        *("aten.adaptive_max_pool2d", "aten.type_as", "aten.unflatten", "aten.slice"),
    )
)
_VIEWS = frozenset(
    (
        *("aten.view", "aten.reshape", "aten.flatten", "aten.squeeze", "aten.unsqueeze"),
        *("aten.expand", "aten.slice", "aten.select", "aten.narrow", "aten.transpose"),
        *("aten.permute", "aten.chunk", "aten.split", "aten.split_with_sizes", "aten.unbind"),
        *("aten.t", "aten.unflatten", "aten.alias", "aten.detach", "aten.contiguous"),
    )
)

_LIKE = {
    torch.ops.aten.expand_as.default: torch.ops.aten.expand.default,
    torch.ops.aten.view_as.default: torch.ops.aten.reshape.default,
    torch.ops.aten.reshape_as.default: torch.ops.aten.reshape.default,
}
"""Operators that read a tensor for its sizes alone, and the ones that are given sizes."""


def packet(node: fx.Node) -> str:
    """The operator of a node without its overload ("aten.add"); "getitem" or "" for others."""
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket)
    return getattr(node.target, "__name__", str(node.target))


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of an ATen call, by position or keyword."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def value(node: fx.Node) -> Tensor:
    """The (fake) tensor of a node. Raises LoweringError if it yields no single tensor."""
    result = node.meta.get("val")
    if not isinstance(result, Tensor):
        raise LoweringError(f"{node.target} yields no tensor", where=place(node))
    return result


def place(node: fx.Node) -> str:
    """The user's source line of a node, or its name in the graph."""
    return source_line(node) or f"node {node.name}"


def get_tensor(module: nn.Module, name: str) -> Tensor:
    """The parameter, buffer or tensor attribute under a dotted name."""
    owner, _, leaf = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(owner), leaf)
    return found


def set_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a buffer under a dotted name; submodules that are missing are made."""
    owner: nn.Module = module
    *path, leaf = name.split(".")
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    owner._parameters.pop(leaf, None)
    owner._buffers.pop(leaf, None)
    owner.__dict__.pop(leaf, None)
    owner.register_buffer(leaf, tensor.detach())


def has_tensor(module: nn.Module, name: str) -> bool:
    """Whether there is anything under a dotted name."""
    try:
        get_tensor(module, name)
    except AttributeError:
        return False
    return True


def constant_node(program: fx.GraphModule, before: fx.Node, name: str, tensor: Tensor) -> fx.Node:
    """A new `get_attr` node for a (new or overwritten) buffer, placed before a node."""
    set_tensor(program, name, tensor)
    with program.graph.inserting_before(before):
        node = program.graph.create_node("get_attr", name)
    node.meta["val"] = tensor.detach()
    return node


def substitute(node: fx.Node, replacement: fx.Node) -> None:
    """Let every user of `node` read `replacement`, and erase `node`."""
    node.replace_all_uses_with(replacement)
    node.graph.erase_node(node)


def functionalise(module: fx.GraphModule) -> None:
    """Replace in-place operators by functional ones.

    Raises LoweringError for writes through a view that is read elsewhere.
    """
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    for node in list(module.graph.nodes):
        if not writes_first(node):
            continue
        written = node.args[0]
        later = [u for u in written.users if order[u] > order[node]]
        for user in later:
            user.replace_input_with(written, node)
        if any(order[user] > order[node] for alias in _aliases(written) for user in alias.users):
            raise LoweringError(
                f"{node.target} writes into a tensor that is also read through a view",
                where=place(node),
                hint="write into a copy",
            )
        name = str(node.target.overloadpacket).removeprefix("aten.").removesuffix("_")
        functional = getattr(torch.ops.aten, name, None)
        overload = node.target._overloadname
        if functional is None or overload not in functional.overloads():
            raise LoweringError(f"{node.target} has no functional form", where=place(node))
        node.target = getattr(functional, overload)


def writes_first(node: fx.Node) -> bool:
    """Whether a call writes into its first operand."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    arguments = node.target._schema.arguments
    alias = arguments[0].alias_info if arguments else None
    name = str(node.target.overloadpacket)
    return alias is not None and alias.is_write and name.endswith("_")


def _aliases(node: fx.Node) -> Iterator[fx.Node]:
    """The values that share memory with a value: what it is a view of, and its views."""
    base = node
    while _is_view(base):
        base = base.args[0]
        yield base
    stack = [base]
    while stack:
        for user in stack.pop().users:
            if _is_view(user) and user is not node:
                yield user
                stack.append(user)


def _is_view(node: fx.Node) -> bool:
    return packet(node) in _VIEWS or packet(node) == "getitem"


def drop_no_ops(module: fx.GraphModule) -> None:
    """Remove what does nothing in evaluation; what takes another's sizes gets them as numbers.

    Raises LoweringError for dropout in training mode.
    """
    for node in list(module.graph.nodes):
        if node.target in _LIKE:
            node.target, node.args = _LIKE[node.target], (node.args[0], list(value(node).shape))
        name = packet(node)
        if name in _DROPOUT and argument(node, 2, "train", False):
            raise LoweringError(
                "dropout that is active in evaluation cannot be compiled", where=place(node)
            )
        if (
            name in _IDENTITY
            or name in _DROPOUT
            or (name in _SAME_SHAPE and _unchanged(node))
            or (name in ("aten.pad", "aten.constant_pad_nd") and not any(node.args[1]))
        ):
            substitute(node, node.args[0])
        elif name.startswith("aten._assert") or name == "aten.sym_constrain_range_for_size":
            module.graph.erase_node(node)
        elif node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            node.target = torch.ops.aten.reshape.default  # memory formats are ours to choose


def _unchanged(node: fx.Node) -> bool:
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return False
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    return before.shape == after.shape and before.dtype == after.dtype
