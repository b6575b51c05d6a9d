"""Normalisations as the certificate needs them, in copies of graphs that are changed in place.

Where statistics run over removed channels, zeros would count as channels: the silenced original
normalises over those that are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from hwprune.coupling import Branch, Coupling
from hwprune.rules.elementwise import standardises
from hwprune.rules.engine import argument, operator_names
from hwprune.rules.reduction import statistic_dim


def silence_branches(module: fx.GraphModule, branches: Iterable[Branch]) -> None:
    """Multiply what residual branches add by zero."""
    nodes = {n.name: n for n in module.graph.nodes}
    for branch in branches:
        add, output = nodes[branch.add], nodes[branch.output]
        with module.graph.inserting_before(add):
            silent = module.graph.call_function(torch.ops.aten.mul.Tensor, (output, 0.0))
        add.replace_input_with(output, silent)
    module.recompile()


def renormalise(module: fx.GraphModule, coupling: Coupling, mask: np.ndarray) -> int:
    """Make every normalisation over channels ignore what is removed; how many do."""
    changed = 0
    for node in list(module.graph.nodes):
        dim = statistics_dim(node)
        if dim is None:
            continue
        x: Any = node.args[0]
        kept = coupling.kept(x.name, dim % len(coupling.shapes[x.name]), mask)
        groups: Any = node.args[1] if operator_names(node)[1] == "group_norm" else 1
        if kept is None or not _split(kept, groups):
            continue
        name = f"_kept_{node.name}"
        module.register_buffer(name, torch.from_numpy(kept.astype(np.float64)))
        with module.graph.inserting_before(node):
            keep = module.graph.get_attr(name)
        node.args = (x, keep, *_arguments(node))
        node.target, node.kwargs = _MASKED[operator_names(node)[1]], {}
        changed += 1
    if changed:
        module.recompile()
    return changed


def _split(kept: np.ndarray, groups: int) -> bool:
    """Whether statistics run over kept and removed channels together."""
    counts = kept.reshape(groups, -1).sum(axis=1)
    return bool(((counts > 0) & (counts < len(kept) // groups)).any())


def statistics_dim(node: fx.Node) -> int | None:
    """The dimension whose channels a call's statistics run over; None where there is none."""
    name = operator_names(node)[1] if node.op == "call_function" else ""
    if name in ("layer_norm", "rms_norm") or (name == "batch_norm" and standardises(node)):
        return -1
    if name == "group_norm":
        return 1
    if name == "_weight_norm":
        return 1 - int(argument(node, 2, "dim", 0))
    return statistic_dim(node) if name in ("mean", "amax", "amin") else None


def plain_norms(module: fx.GraphModule) -> None:
    """Write batch norms in evaluation mode, and norms of weights, as arithmetic.

    PyTorch's own gradient of a batch norm is wrong for a single picture whose gradient lies
    transposed (2.13, CPU), as it does behind a patch embedding. A silenced row of a weight has no
    length to divide by.
    """
    changed = False
    for node in module.graph.nodes:
        name = operator_names(node)[1] if node.op == "call_function" else ""
        if name == "batch_norm" and not node.args[5] and isinstance(node.args[3], fx.Node):
            node.args, node.target, changed = (*node.args[:5], node.args[7]), _batch_norm, True
        elif name == "_weight_norm":
            node.target, changed = _weight_norm, True
    if changed:
        module.recompile()


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    """What a masked normalisation takes beside the value and the mask."""
    name = operator_names(node)[1]
    if name in ("mean", "amax", "amin"):
        return statistic_dim(node), bool(argument(node, 2, "keepdim", False))
    if name == "batch_norm":
        return node.args[1], node.args[2], node.args[7]
    if name == "_weight_norm":
        return node.args[1], argument(node, 2, "dim", 0)
    if name == "group_norm":
        names = ((1, "num_groups"), (2, "weight"), (3, "bias"))
        return (*(argument(node, *place) for place in names), argument(node, 4, "eps", 1e-5))
    weight = argument(node, 2, "weight")
    if name == "rms_norm":
        return weight, argument(node, 3, "eps")
    return weight, argument(node, 3, "bias"), argument(node, 4, "eps", 1e-5)


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    shape = [1, -1] + [1] * (x.ndim - 2)
    scale = (var + eps).rsqrt() if weight is None else (var + eps).rsqrt() * weight
    y = (x - mean.reshape(shape)) * scale.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def _layer_norm(
    x: Tensor, keep: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    count = keep.sum()
    centred = (x - (x * keep).sum(-1, keepdim=True) / count) * keep
    variance = centred.square().sum(-1, keepdim=True) / count
    y = centred * (variance + eps).rsqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias * keep


def _group_norm(
    x: Tensor,
    keep: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    flat, mask = x.reshape(len(x), groups, -1), keep.reshape(-1, *[1] * (x.ndim - 2))
    mask = mask.expand(x.shape[1:]).reshape(1, groups, -1)
    count = mask.sum(-1, keepdim=True).clamp_min(1.0)
    centred = (flat - (flat * mask).sum(-1, keepdim=True) / count) * mask
    variance = centred.square().sum(-1, keepdim=True) / count
    y = (centred * (variance + eps).rsqrt()).reshape(x.shape)
    shape = [-1] + [1] * (x.ndim - 2)
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + (bias * keep).reshape(shape)


def _standardise(
    x: Tensor, keep: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    count = keep.sum() * len(x)
    centred = (x - (x * keep).sum((0, 2), keepdim=True) / count) * keep
    y = centred * (centred.square().sum((0, 2), keepdim=True) / count + eps).rsqrt()
    y = y if weight is None else y * weight[:, None]
    return y if bias is None else y + bias[:, None] * keep


def _rms_norm(x: Tensor, keep: Tensor, weight: Tensor | None, eps: float | None) -> Tensor:
    x = x * keep
    least = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * (x.square().sum(-1, keepdim=True) / keep.sum() + least).rsqrt()
    return y if weight is None else y * weight


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    square = v.square().sum([d for d in range(v.ndim) if d != dim], keepdim=True)
    return v * g * square.where(square > 0, 1.0).rsqrt()


def _kept_weight_norm(v: Tensor, keep: Tensor, g: Tensor, dim: int) -> Tensor:
    place = [-1 if d == 1 - dim else 1 for d in range(v.ndim)]
    return _weight_norm(v * keep.reshape(place), g, dim)


def _mean(x: Tensor, keep: Tensor, dim: int, keepdim: bool) -> Tensor:
    mean = x.movedim(dim, -1) @ keep / keep.sum()
    return mean.unsqueeze(dim) if keepdim else mean


def _amax(x: Tensor, keep: Tensor, dim: int, keepdim: bool) -> Tensor:
    return x.index_select(dim, keep.nonzero().reshape(-1)).amax(dim, keepdim)


def _amin(x: Tensor, keep: Tensor, dim: int, keepdim: bool) -> Tensor:
    return x.index_select(dim, keep.nonzero().reshape(-1)).amin(dim, keepdim)


_MASKED: dict[str, Callable[..., Tensor]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "mean": _mean,
    "amax": _amax,
    "amin": _amin,
    "batch_norm": _standardise,
    "group_norm": _group_norm,
    "_weight_norm": _kept_weight_norm,
}
