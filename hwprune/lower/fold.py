"""Fold batch norm and other per-channel arithmetic into convolutions and linear layers.

TVM's importer gets batch norm wrong without a word, so none may reach it. Every normalisation
with fixed statistics, and every sum, difference, product or quotient with a number or a
per-channel constant becomes a `channel_affine`; one that follows a convolution or linear layer
moves into its weights. Arithmetic on weights is in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from hwprune.capture import Program
from hwprune.errors import LoweringError
from hwprune.lower.affine import channel_affine, channel_axis, fold_affine, held
from hwprune.lower.functional import (
    argument,
    constant_node,
    get_tensor,
    packet,
    place,
    substitute,
    value,
)
from hwprune.lower.normalise import normalise

_NORMS = {"aten.batch_norm": 7, "aten._native_batch_norm_legit_no_training": 6}  # where eps is
_ARITHMETIC = frozenset(("aten.add", "aten.sub", "aten.mul", "aten.div", "aten.rsub", "aten.neg"))


def fold_batch_norm(program: Program) -> Program:
    """The same function of the inputs, normalised, with batch norm folded.

    A convolution keeps its node's name and its weight's name; a bias it did not have is named
    like the weight, with `bias` as the last component. Weights shared by several calls get a name
    of their own, `weight@node`. What cannot be folded (a norm before a convolution) remains as
    a `channel_affine` node under the norm's name. Raises LoweringError for batch norm in
    training mode or with statistics that are not finite.
    """
    result = normalise(program)
    module = result.module
    for node in list(module.graph.nodes):
        if packet(node) in _NORMS:
            _norm_to_affine(module, node)
        elif packet(node) in _ARITHMETIC:
            _arithmetic_to_affine(module, node)
        elif packet(node) == "aten.prelu":
            _expand_prelu(module, node)
    for node in list(module.graph.nodes):
        if node.target is channel_affine:
            fold_affine(module, node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return result


def _norm_to_affine(module: fx.GraphModule, node: fx.Node) -> None:
    name = packet(node)
    if name == "aten.batch_norm" and (node.args[5] or node.args[3] is None):
        raise LoweringError(
            "batch norm in training mode (or without running statistics) cannot be compiled",
            where=place(node),
        )
    eps = float(argument(node, _NORMS[name], "eps", 1e-5))
    mean, var = (held(module, node.args[i], node).double() for i in (3, 4))
    scale = torch.rsqrt(var + eps)
    if node.args[1] is not None:
        scale = scale * held(module, node.args[1], node).double()
    shift = -mean * scale
    if node.args[2] is not None:
        shift = shift + held(module, node.args[2], node).double()
    if not bool(torch.isfinite(torch.stack([scale, shift]).float()).all()):
        raise LoweringError(
            "a batch norm's statistics give a scale or shift that is not finite",
            where=_norm_prefix(node) or place(node),
            hint="its running variance must be positive",
        )
    users = [u for u in node.users if packet(u) == "getitem"] or [node]
    if any(u is not node and u.args[1] != 0 for u in users):
        raise LoweringError("the statistics of a batch norm are read", where=place(node))
    for user in users:
        _replace_by_affine(module, user, node.args[0], scale, shift, _norm_prefix(node))
    if users != [node]:
        module.graph.erase_node(node)


def _norm_prefix(node: fx.Node) -> str:
    """The dotted name of the batch norm module, of whose `weight` and `bias` we take the place."""
    source = node.args[1] if isinstance(node.args[1], fx.Node) else node.args[3]
    assert isinstance(source, fx.Node)
    return str(source.target).rpartition(".")[0]


def _replace_by_affine(
    module: fx.GraphModule, node: fx.Node, x: fx.Node, scale: Tensor, shift: Tensor, prefix: str
) -> None:
    """Put a `channel_affine` of x in a node's place, under its name."""
    val, name, meta = value(node), node.name, dict(node.meta)
    norm = packet(node) not in _ARITHMETIC
    names = (f"{prefix}.weight", f"{prefix}.bias") if prefix else ("weight", "bias")
    if not norm:
        names = (f"{name}_scale", f"{name}_shift")
    constants = [
        constant_node(module, node, target, tensor.to(val.dtype).contiguous())
        for target, tensor in zip(names, (scale, shift), strict=True)
    ]
    with module.graph.inserting_before(node):
        if norm and val.ndim not in (2, 4):  # channels are axis 1, which is not channel_axis
            new = _channels_first(module, node, x, constants)
        else:
            new = module.graph.call_function(channel_affine, (x, *constants))
    substitute(node, new)
    new.meta = meta
    new._rename(name)


def _channels_first(
    module: fx.GraphModule, node: fx.Node, x: fx.Node, constants: list[fx.Node]
) -> fx.Node:
    """x * scale + shift along axis 1, as two ATen calls."""
    val = value(node)
    shape = (-1, *([1] * (val.ndim - 2)))
    wide = [
        constant_node(module, node, f"{node.name}_{i}", value(c).reshape(shape))
        for i, c in enumerate(constants)
    ]
    with module.graph.inserting_before(node):
        product = module.graph.call_function(torch.ops.aten.mul.Tensor, (x, wide[0]))
        product.meta = dict(node.meta)
        return module.graph.call_function(torch.ops.aten.add.Tensor, (product, wide[1]))


def _arithmetic_to_affine(module: fx.GraphModule, node: fx.Node) -> None:
    """Arithmetic with a number or a per-channel constant becomes a `channel_affine`."""
    val = node.meta.get("val")
    if not isinstance(val, Tensor) or val.dtype != torch.float32 or val.ndim < 2:
        return
    op = packet(node).removeprefix("aten.")
    if node.kwargs.get("rounding_mode") is not None:
        return
    first = node.args[0]
    second: Any = 0.0 if op == "neg" else node.args[1]
    alpha = argument(node, 2, "alpha", 1) if op in ("add", "sub", "rsub") else 1
    if not isinstance(alpha, int | float):
        return
    forward, backward = _channels(module, second, val), _channels(module, first, val)
    if forward is not None and _running(first, val):
        x, scale, shift = first, *_right(op, forward, alpha)
    elif backward is not None and _running(second, val) and op in ("add", "sub", "mul"):
        x, scale, shift = second, *_left(op, backward, alpha)
    else:
        return
    if torch.isfinite(scale).all() and torch.isfinite(shift).all():
        _replace_by_affine(module, node, x, scale, shift, "")


def _running(source: Any, val: Tensor) -> bool:
    """Whether an operand is a computed value of the result's shape."""
    if not isinstance(source, fx.Node) or source.op == "get_attr":
        return False
    other = source.meta.get("val")
    return isinstance(other, Tensor) and other.shape == val.shape and other.dtype == val.dtype


def _channels(module: fx.GraphModule, source: Any, val: Tensor) -> Tensor | None:
    """A number or per-channel constant as a (C,) float64 tensor; None for anything else."""
    axis = channel_axis(val.ndim)
    width = val.shape[axis]
    if isinstance(source, bool):
        return None
    if isinstance(source, int | float):
        return torch.full((width,), float(source), dtype=torch.float64)
    if not isinstance(source, fx.Node) or source.op != "get_attr":
        return None
    tensor = get_tensor(module, str(source.target)).detach()
    wanted = [1] * val.ndim
    wanted[axis] = width
    shape = [1] * (val.ndim - tensor.ndim) + list(tensor.shape)
    if not tensor.is_floating_point() or (tensor.numel() != 1 and shape != wanted):
        return None
    return tensor.double().reshape(-1).expand(width).contiguous()


def _right(op: str, c: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """(scale, shift) of `x op c`."""
    one, zero = torch.ones_like(c), torch.zeros_like(c)
    return {
        "add": (one, c * alpha),
        "sub": (one, -c * alpha),
        "rsub": (-one * alpha, c),
        "mul": (c, zero),
        "div": (1.0 / c, zero),
        "neg": (-one, zero),
    }[op]


def _left(op: str, c: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """(scale, shift) of `c op x`."""
    one, zero = torch.ones_like(c), torch.zeros_like(c)
    return {"add": (one * alpha, c), "sub": (-one * alpha, c), "mul": (c, zero)}[op]


def _expand_prelu(module: fx.GraphModule, node: fx.Node) -> None:
    """One slope for all channels becomes one slope per channel."""
    weight = node.args[1]
    val = node.meta.get("val")
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or not isinstance(val, Tensor):
        return
    tensor = get_tensor(module, str(weight.target)).detach()
    if tensor.numel() == 1 and val.ndim in (2, 4):
        wide = tensor.reshape(1).expand(val.shape[1]).contiguous()
        node.update_arg(1, constant_node(module, node, f"{node.name}_slope", wide))
