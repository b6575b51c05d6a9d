"""A product and a sum for every channel: what it computes, and how it moves into weights.

In: a graph module with `channel_affine` nodes, changed in place. Those that follow a convolution or
linear layer become a part of its weights. Arithmetic on weights is in float64.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from hwprune.errors import LoweringError
from hwprune.lower.functional import (
    argument,
    constant_node,
    get_tensor,
    has_tensor,
    packet,
    place,
    value,
)

_CONVOLUTIONS = frozenset(("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution"))


def channel_affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`x * scale + shift`, both (C,), along `channel_axis(x.ndim)`."""
    shape = [1] * x.ndim
    shape[channel_axis(x.ndim)] = -1
    return x * scale.reshape(shape) + shift.reshape(shape)


def channel_axis(ndim: int) -> int:
    """Where per-channel constants lie: axis 1 of images (4-D), the last axis of all else."""
    return 1 if ndim == 4 else ndim - 1


def held(module: fx.GraphModule, source: Any, user: fx.Node) -> Tensor:
    """A parameter or constant. Raises LoweringError, naming the call that reads it, for others."""
    if not isinstance(source, fx.Node) or source.op != "get_attr":
        raise LoweringError(f"a parameter of {user.target} is computed", where=place(user))
    return get_tensor(module, str(source.target)).detach()


def fold_affine(module: fx.GraphModule, node: fx.Node) -> None:
    """Move a `channel_affine` into the convolution, linear layer or affine that feeds it."""
    producer = node.args[0]
    if not isinstance(producer, fx.Node) or len(producer.users) != 1:
        return
    scale, shift = (held(module, c, node).double() for c in node.args[1:3])
    if producer.target is channel_affine:
        weight, bias = (held(module, c, producer).double() for c in producer.args[1:3])
        names = ("scale", "shift")
        for i, tensor in enumerate((weight * scale, bias * scale + shift)):
            name = f"{producer.name}_{names[i]}_{node.name}"
            constant = constant_node(module, producer, name, tensor.to(value(node).dtype))
            producer.update_arg(i + 1, constant)
    elif not _fold_into_weight(module, producer, scale, shift):
        return
    node.replace_all_uses_with(producer)
    module.graph.erase_node(node)


def _fold_into_weight(module: fx.GraphModule, node: fx.Node, scale: Tensor, shift: Tensor) -> bool:
    """Scale a layer's weight and shift its bias; False where that is not possible."""
    name, val = packet(node), value(node)
    linear = name == "aten.linear"
    if linear and val.ndim == 4:
        return False  # its channels are the last axis, the affine's are axis 1
    if not linear and (name not in _CONVOLUTIONS or val.ndim != 4):
        return False
    if name == "aten.convolution" and node.args[6]:
        return False
    weight_node, bias_node = node.args[1], argument(node, 2, "bias")
    if not isinstance(weight_node, fx.Node) or weight_node.op != "get_attr":
        return False
    if bias_node is not None and bias_node.op != "get_attr":
        return False
    weight = held(module, weight_node, node).double()
    weight = weight * scale.reshape(-1, *([1] * (weight.ndim - 1)))
    bias = shift
    if bias_node is not None:
        bias = bias + held(module, bias_node, node).double() * scale
    weight_name = _free_name(module, weight_node, str(weight_node.target), node)
    bias_name = str(weight_node.target).rpartition(".")[0] + ".bias"
    if bias_node is not None:
        bias_name = str(bias_node.target)
    bias_name = _free_name(module, bias_node, bias_name.removeprefix("."), node)
    new = [
        constant_node(module, node, target, tensor.to(val.dtype).contiguous())
        for target, tensor in ((weight_name, weight), (bias_name, bias))
    ]
    arguments = list(node.args) + [None] * (3 - len(node.args))
    arguments[1:3] = new
    node.args = tuple(arguments)
    node.kwargs = {k: v for k, v in node.kwargs.items() if k != "bias"}
    return True


def _free_name(module: fx.GraphModule, old: fx.Node | None, name: str, node: fx.Node) -> str:
    """`name` if overwriting it changes nothing else, else a name of the node's own."""
    readers = [
        user
        for source in module.graph.nodes
        if source.op == "get_attr" and str(source.target) == name
        for user in source.users
    ]
    if old is not None:
        return name if readers == [node] else f"{name}@{node.name}"
    return name if not readers and not has_tensor(module, name) else f"{name}@{node.name}"
