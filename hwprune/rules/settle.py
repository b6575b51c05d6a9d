"""What the result of every rule must satisfy, and which calls may carry heads with the batch."""

from __future__ import annotations

import numpy as np
from torch import fx

from hwprune.program import symbolic_dims, tensor_value
from hwprune.rules.engine import Factors, Tracer, operator_names, varying

_CARRIERS = frozenset(
    [
        "view", "reshape", "_unsafe_view", "permute", "transpose", "contiguous", "clone", "alias",
        "bmm", "baddbmm", "matmul", "scaled_dot_product_attention", "softmax", "_softmax", "mul",
        "div", "add", "dropout", "to", "_to_copy",
    ]
)  # fmt: skip


def carries_batch(node: fx.Node) -> bool:
    """Whether a call may have heads in one dimension with the batch: it works on each alike."""
    return operator_names(node)[1] in _CARRIERS


def settle(tracer: Tracer, node: fx.Node, factors: Factors) -> Factors:
    """What every rule's result must satisfy; freezes labels that would break it.

    Labels may not vary over the batch (or another size that is not fixed) but where it is only
    carried along, and a dimension of length one has no channel to spare.
    """
    value = tensor_value(node)
    loose = frozenset() if carries_batch(node) else symbolic_dims(node)
    result: list[np.ndarray] = []
    for factor in factors:
        dims = varying(factor)
        if value is None:
            tracer.freeze(factor, node, "yields no tensor")
        elif factor.ndim != value.ndim or any(factor.shape[d] != value.shape[d] for d in dims):
            tracer.freeze(factor, node, "unsupported form of the operator")
        elif not dims:
            tracer.freeze(factor, node, "a dimension of length one cannot shrink")
        elif loose & set(dims):
            tracer.freeze(factor, node, "channels are merged with the batch")
        else:
            result.append(factor)
    return _one_each(tracer, node, result)


def _one_each(tracer: Tracer, node: fx.Node, factors: list[np.ndarray]) -> Factors:
    """Where several factors vary over one dimension, the one with most labels stays alone."""
    result: list[np.ndarray] = []
    for factor in sorted(factors, key=lambda f: -f.size):
        if any(set(varying(factor)) & set(varying(other)) for other in result):
            tracer.freeze(factor, node, "is merged with a dimension of other channels")
        else:
            result.append(factor)
    return tuple(result)


def leave_batch(tracer: Tracer, node: fx.Node) -> None:
    """Freeze labels that lie in one dimension with the batch, before a call that mixes them."""
    if carries_batch(node):
        return
    for arg in node.all_input_nodes:
        loose, factors = symbolic_dims(arg), tracer.of(arg)
        merged = [f for f in factors if loose & set(varying(f))]
        for factor in merged:
            tracer.freeze(factor, node, "channels are merged with the batch")
        if merged:
            tracer.values[arg] = tuple(f for f in factors if not loose & set(varying(f)))
