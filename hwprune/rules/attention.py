"""The rule of fused attention: two products of activations with a softmax between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from hwprune.rules.engine import Factors, Tracer, UnsupportedForm, argument, combine, rule, shape_of
from hwprune.rules.product import Operand, batch_letters, contract, operand, tail


@rule("scaled_dot_product_attention")
def attention(tracer: Tracer, node: fx.Node) -> Factors:
    """`softmax(q k^T scale + mask) v`: q (..., t, d), k (..., s, d), v (..., s, v)."""
    names = ("query", "key", "value", "attn_mask")
    q, k, v, mask = (argument(node, i, name) for i, name in enumerate(names))
    ndims = [len(shape_of(x)) for x in (q, k, v)]
    batch = batch_letters(*ndims)
    queries, keys, values = (
        operand(tracer, x, tail(batch, n - 2) + letters)
        for x, n, letters in zip((q, k, v), ndims, ("td", "sd", "sv"), strict=True)
    )
    if argument(node, 7, "enable_gqa", False):
        keys, values = (_repeated(x, queries) for x in (keys, values))
    size = dict(zip(batch + "ts", (*shape_of(node)[:-1], shape_of(k)[-2]), strict=True))
    shape = [size[c] for c in batch + "ts"]
    scores = contract(tracer, node, queries, keys, batch + "ts", shape)
    if isinstance(mask, fx.Node):
        scores = combine(tracer, node, [(scores, shape), (tracer.of(mask), shape_of(mask))], shape)
    scores = tracer.fix_dim(scores, len(shape) - 1, node, "mixes the channels of a dimension")
    weights = Operand(scores, shape, batch + "ts", vanishes=False)
    return contract(tracer, node, weights, values, batch + "tv", shape_of(node))


def _repeated(x: Operand, queries: Operand) -> Operand:
    """Grouped queries: each key/value head serves the query heads that follow each other."""
    if len(x.shape) < 3 or queries.shape[-3] % x.shape[-3]:
        raise UnsupportedForm("heads of queries and keys do not fit")
    count = queries.shape[-3] // x.shape[-3]
    factors = tuple(np.repeat(f, count, axis=-3) if f.shape[-3] > 1 else f for f in x.factors)
    shape: Any = (*x.shape[:-3], queries.shape[-3], *x.shape[-2:])
    return replace(x, factors=factors, shape=shape)
