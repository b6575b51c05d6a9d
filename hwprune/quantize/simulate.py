"""A quantized network in float: every value and weight rounded to what its integers stand for.

In: the folded program, its steps and the scheme. Out: a GraphModule of the same node names that
trains: rounding passes gradients through where it does not clip (straight-through estimator,
Bengio et al. 2013; Jacob et al. 2018). Weight scales follow the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from hwprune.lower.functional import get_tensor, set_tensor
from hwprune.program import Program, copy_graph
from hwprune.quantize.graph import INT8_MAX, INT8_MIN
from hwprune.quantize.scheme import Params, Scheme
from hwprune.quantize.steps import LAYERS, MOVES, QuantStep
from hwprune.quantize.weights import weight_scales


def own_graph(program: Program) -> fx.GraphModule:
    """A module of the same nodes and tensors; what is put into it changes no other one."""
    return fx.GraphModule(program.module, copy_graph(program))


def rounded_value(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """A value as int8 holds it."""
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, INT8_MIN, INT8_MAX)


def rounded_average(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """An average as the integer kernel rounds it: the ties, which are many, away from zero."""
    nudge = 1e-3 * scale * torch.sign(x.detach() + scale * zero_point)
    return rounded_value(x + nudge, scale, zero_point)


ROUNDING = (rounded_value, rounded_average)


def rounded_weight(weight: Tensor, bias: Tensor | None, input_scale: float) -> Tensor:
    """A weight (O, …) as int8 holds it, a scale for every output channel."""
    scales = weight_scales(weight, bias, input_scale)
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -INT8_MAX, INT8_MAX)


def rounded_slope(slope: Tensor) -> Tensor:
    """The slopes of a prelu as int8 holds them: one scale for all, symmetric."""
    return torch.fake_quantize_per_tensor_affine(slope, slope_scale(slope), 0, -INT8_MAX, INT8_MAX)


def slope_scale(slope: Tensor) -> float:
    """The scale of the slopes of a prelu."""
    return float(slope.detach().abs().amax()) / INT8_MAX or 1.0


def rounded_affine(weight: Tensor, bias: Tensor, input_scale: float) -> Tensor:
    """The factors (C,) of a per-channel affine as the int8 weights of a depthwise convolution."""
    return rounded_weight(weight.reshape(-1, 1), bias, input_scale).reshape(-1)


def simulate(program: Program, steps: Sequence[QuantStep], scheme: Scheme) -> fx.GraphModule:
    """The network with rounding in it; shares no tensors with `program`.

    Parameters of layers are trainable under the names that they have in `program`.
    """
    module = own_graph(program)
    _own(module, {step.weight for step in steps} | {step.bias for step in steps})
    nodes = {node.name: node for node in module.graph.nodes}
    for node in list(module.graph.nodes):
        if node.op == "placeholder":
            _round_after(node, scheme.of(node.name))
    for step in steps:
        node = nodes[step.node.name]
        source = scheme.of(step.inputs[0].name).scale
        if step.kind in LAYERS:
            _round_argument(node, 1, rounded_weight, (_bias(node), source))
        elif step.kind == "affine":
            _round_argument(node, 1, rounded_affine, (node.args[2], source))
        elif step.kind == "prelu":
            _round_argument(node, 1, rounded_slope, ())
        if step.kind not in MOVES:
            function = rounded_average if step.kind == "avg_pool" else rounded_value
            _round_after(nodes[step.result.name], scheme.of(step.result.name), function)
    module.recompile()
    return module


def with_weights_of(program: Program, trained: nn.Module) -> Program:
    """The folded program with the parameters of its trained simulation."""
    module = own_graph(program)
    for node in module.graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            set_tensor(module, name, get_tensor(trained, name).detach().clone())
    return Program(module, program.inputs, program.name, program.dynamic_batch)


def _bias(node: fx.Node) -> Any:
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")


def _own(module: fx.GraphModule, trained: set[fx.Node | None]) -> None:
    """Give the module tensors of its own; those of layers are parameters."""
    names = {str(node.target) for node in trained if node is not None}
    for target in {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}:
        tensor = get_tensor(module, target)
        set_tensor(module, target, tensor.clone())
        if target in names or isinstance(tensor, nn.Parameter):
            owner, _, leaf = target.rpartition(".")
            holder = module.get_submodule(owner)
            copied = holder._buffers.pop(leaf)
            assert copied is not None
            holder.register_parameter(leaf, nn.Parameter(copied))


def _round_after(
    node: fx.Node, params: Params, function: Callable[..., Tensor] = rounded_value
) -> None:
    with node.graph.inserting_after(node):
        call = node.graph.call_function(function, (node, params.scale, params.zero_point))
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)


def _round_argument(
    node: fx.Node, position: int, function: Callable[..., Tensor], more: tuple[Any, ...]
) -> None:
    with node.graph.inserting_before(node):
        call = node.graph.call_function(function, (node.args[position], *more))
    node.update_arg(position, call)
