"""The reference of the certificate where normalisation statistics run over removed channels.

Zeros would count as channels there. So the silenced original normalises over those that are kept.
Input: a copy of the original's graph, its coupling and a unit mask. It is changed in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from hwprune.coupling import Coupling
from hwprune.rules.engine import argument, operator_names
from hwprune.rules.reduction import is_mean_square


def renormalise(module: fx.GraphModule, coupling: Coupling, mask: np.ndarray) -> int:
    """Make every normalisation over the last dimension ignore what is removed; how many do."""
    changed = 0
    for node in list(module.graph.nodes):
        function = _MASKED.get(operator_names(node)[1]) if node.op == "call_function" else None
        if function is None or (function is _mean and not is_mean_square(node)):
            continue
        x: Any = node.args[0]
        kept = coupling.kept(x.name, len(coupling.shapes[x.name]) - 1, mask)
        if kept is None or bool(kept.all()):
            continue
        name = f"_kept_{node.name}"
        module.register_buffer(name, torch.from_numpy(kept.astype(np.float64)))
        with module.graph.inserting_before(node):
            keep = module.graph.get_attr(name)
        node.args = (x, keep, *_arguments(node))
        node.target, node.kwargs = function, {}
        changed += 1
    module.recompile()
    return changed


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    """What a masked normalisation takes beside the value and the mask."""
    name = operator_names(node)[1]
    if name == "mean":
        return ()
    weight = argument(node, 2, "weight")
    if name == "rms_norm":
        return weight, argument(node, 3, "eps")
    return weight, argument(node, 3, "bias"), argument(node, 4, "eps", 1e-5)


def _layer_norm(
    x: Tensor, keep: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    count = keep.sum()
    centred = (x - (x * keep).sum(-1, keepdim=True) / count) * keep
    variance = centred.square().sum(-1, keepdim=True) / count
    y = centred * (variance + eps).rsqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias * keep


def _rms_norm(x: Tensor, keep: Tensor, weight: Tensor | None, eps: float | None) -> Tensor:
    x = x * keep
    least = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * (x.square().sum(-1, keepdim=True) / keep.sum() + least).rsqrt()
    return y if weight is None else y * weight


def _mean(x: Tensor, keep: Tensor) -> Tensor:
    return (x * keep).sum(-1, keepdim=True) / keep.sum()


_MASKED: dict[str, Callable[..., Tensor]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "mean": _mean,
}
