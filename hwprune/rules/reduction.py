"""Rules of reductions, normalisations and windows: labels pass where they are not mixed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import fx

from hwprune.program import tensor_value
from hwprune.rules.contraction import same_group, same_offset
from hwprune.rules.engine import (
    Choice,
    Factors,
    Outputs,
    Tracer,
    UnsupportedForm,
    along,
    argument,
    combine,
    operator_names,
    rule,
    shape_of,
    varying,
)

_STATISTICS = "normalisation statistics run over these channels"


def _dims(dim: Any, ndim: int) -> list[int]:
    """The dimensions a reduction runs over; all of them for None or an empty list."""
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        return list(range(ndim))
    listed: Sequence[int] = dim if isinstance(dim, list | tuple) else [dim]
    return sorted({int(d) % ndim for d in listed}) if ndim else []


def _pinned(tracer: Tracer, node: fx.Node, arg: Any, dims: Sequence[int], why: str) -> Factors:
    factors = tracer.of(arg)
    for dim in dims:
        factors = tracer.fix_dim(factors, dim, node, why)
    return factors


def _reduced(tracer: Tracer, node: fx.Node, dim: Any, keepdim: bool) -> Factors:
    x = node.args[0]
    dims = _dims(dim, len(shape_of(x)))
    factors = _pinned(tracer, node, x, dims, "mixes the channels of a dimension")
    if keepdim:
        return factors
    return tuple(f.squeeze(tuple(dims)) if dims else f for f in factors)


@rule("sum", "prod", "any", "all", "argmax", "argmin", "logsumexp")
def reduce(tracer: Tracer, node: fx.Node) -> Factors:
    """`op(x, dim, keepdim)`."""
    keeps = bool(argument(node, 2, "keepdim", False))
    return _reduced(tracer, node, argument(node, 1, "dim"), keeps)


@rule("mean", "amax", "amin")
def statistic(tracer: Tracer, node: fx.Node) -> Factors:
    """`op(x, dim, keepdim)`: over one dimension, that of the channels that stay."""
    dim, factors = statistic_dim(node), tracer.of(node.args[0])
    keeps = bool(argument(node, 2, "keepdim", False))
    alone = [f for f in factors if varying(f) == (dim,)]
    if dim is None or not alone:
        return _reduced(tracer, node, argument(node, 1, "dim"), keeps)
    tracer.statistics += [f.ravel() for f in alone]
    others = tuple(f for f in factors if f.shape[dim] == 1)
    return others if keeps else tuple(f.squeeze(dim) for f in others)


def statistic_dim(node: fx.Node) -> int | None:
    """The one dimension that a mean or a maximum runs over; else None."""
    value = tensor_value(node.args[0])  # type: ignore[arg-type]
    dims = [] if value is None else _dims(argument(node, 1, "dim"), value.ndim)
    return dims[0] if len(dims) == 1 else None


@rule("var.correction", "std.correction", "var.dim", "std.dim", "linalg_vector_norm", "norm")
def spread(tracer: Tracer, node: fx.Node) -> Factors:
    """Reductions whose further arguments lie differently: the result's shape tells the rest."""
    position = 2 if operator_names(node)[1] in ("linalg_vector_norm", "norm") else 1
    dim = argument(node, position, "dim")
    keepdim = len(shape_of(node)) == len(shape_of(node.args[0]))
    return _reduced(tracer, node, dim, keepdim)


@rule("max.dim", "min.dim", "median.dim")
def reduce_with_indices(tracer: Tracer, node: fx.Node) -> Outputs:
    """(values, indices) of `op(x, dim, keepdim)`."""
    factors = _reduced(tracer, node, node.args[1], bool(argument(node, 2, "keepdim", False)))
    return Outputs([factors, factors])


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod")
def along_dim(tracer: Tracer, node: fx.Node) -> Factors:
    """Mixes along one dimension, keeps the shape."""
    x = node.args[0]
    dims = _dims(argument(node, 1, "dim"), len(shape_of(x)))
    return _pinned(tracer, node, x, dims, "mixes the channels of a dimension")


@rule("layer_norm", "rms_norm")
def layer_norm(tracer: Tracer, node: fx.Node) -> Factors:
    """Statistics over the last dimension: of the channels that stay. Over several: those stay."""
    x, ndim = node.args[0], len(shape_of(node))
    size = argument(node, 1, "normalized_shape")
    parameters = [a for a in node.args[2:4] if isinstance(a, fx.Node)]
    factors = tracer.of(x)
    channels = [f for f in factors if f.shape[-1] > 1]
    if len(size) > 1 or not channels or len(varying(channels[0])) > 1:
        for arg in parameters:
            tracer.freeze_value(arg, node, _STATISTICS)
        return _pinned(tracer, node, x, list(range(ndim - len(size), ndim)), _STATISTICS)
    labels = channels[0].ravel()
    for arg in parameters:
        tracer.unite_axes(labels, tracer.vector(tracer.of(arg), 0), node, _STATISTICS)
    tracer.statistics.append(labels)
    return factors


@rule("group_norm")
def group_norm(tracer: Tracer, node: fx.Node) -> Factors:
    """`group_norm(x, groups, weight, bias)`: whole norm groups go, or the same channels of each."""
    x, groups, ndim = node.args[0], int(node.args[1]), len(shape_of(node))  # type: ignore[arg-type]
    factors = _pinned(tracer, node, x, list(range(2, ndim)), _STATISTICS)
    labels = tracer.vector(factors, 1)
    for arg in node.args[2:4]:
        if isinstance(arg, fx.Node):
            tracer.unite_axes(labels, tracer.vector(tracer.of(arg), 0), node, _STATISTICS)
    others = tuple(f for f in factors if f.shape[1] == 1)
    if labels is None:
        return others
    wholes, offsets = (same(labels, groups) for same in (same_group, same_offset))
    tracer.choices.append(
        Choice(
            node,
            "group_norm",
            (wholes,),
            (offsets,),
            labels,
            len(labels) // groups,
            statistics=labels,
        )
    )
    return (*others, along(labels, 1, ndim))


@rule("_weight_norm")
def weight_norm(tracer: Tracer, node: fx.Node) -> Factors:
    """`g v / |v|` of a weight, a length for each row or each column: of the channels that stay."""
    v, g = node.args[:2]
    shape, dim = shape_of(v), int(argument(node, 2, "dim", 0))
    if len(shape) < 2 or dim not in (0, 1):
        raise UnsupportedForm("a norm over more than the other channels")
    factors = _pinned(tracer, node, v, range(2, len(shape)), "")
    tracer.statistics += [f.ravel() for f in factors if varying(f) == (1 - dim,)]
    return combine(tracer, node, [(factors, shape), (tracer.of(g), shape_of(g))], shape)


_WINDOWS = [
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "_adaptive_avg_pool2d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "upsample_bilinear2d",
    "upsample_linear1d",
    "upsample_bicubic2d",
    "upsample_trilinear3d",
    "_upsample_nearest_exact2d",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
]


def _spatial(node: fx.Node) -> list[int]:
    match = re.search(r"([123])d", operator_names(node)[1])
    if match is None:
        raise UnsupportedForm("unknown number of spatial dimensions")
    ndim = len(shape_of(node.args[0]))
    return list(range(ndim - int(match[1]), ndim))


@rule(*_WINDOWS)
def window(tracer: Tracer, node: fx.Node) -> Factors:
    """Pooling, resizing and mirrored padding work within a channel, over space."""
    return _pinned(tracer, node, node.args[0], _spatial(node), "mixes positions in space")


@rule(
    "max_pool2d_with_indices",
    "max_pool1d_with_indices",
    "max_pool3d_with_indices",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
)
def window_with_indices(tracer: Tracer, node: fx.Node) -> Outputs:
    """(values, indices) of a pooling."""
    factors = window(tracer, node)
    assert not isinstance(factors, Outputs)
    return Outputs([factors, factors])
