"""Rules of operators that only move data: labels move the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from hwprune.rules.engine import (
    Factors,
    Outputs,
    Tracer,
    UnsupportedForm,
    argument,
    combine,
    rule,
    shape_of,
    varying,
)


def segments(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split a reshape into independent ones: runs of dimensions with equal products.

    Dimensions of length one belong to no run. UnsupportedForm for empty tensors.
    """
    if 0 in old or 0 in new:
        raise UnsupportedForm("reshape of an empty tensor")
    left = [d for d, s in enumerate(old) if s > 1]
    right = [d for d, s in enumerate(new) if s > 1]
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(left) and j < len(right):
        a, b, ins, outs = old[left[i]], new[right[j]], [left[i]], [right[j]]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, i = a * old[left[i]], i + 1
                ins.append(left[i - 1])
            else:
                b, j = b * new[right[j]], j + 1
                outs.append(right[j - 1])
        runs.append((ins, outs))
    return runs


def reshape_factor(factor: np.ndarray, old: Sequence[int], new: Sequence[int]) -> np.ndarray:
    """A label array after a reshape, size 1 again along dimensions it is constant over."""
    runs = segments(old, new)
    touched = [r for r in runs if any(factor.shape[d] > 1 for d in r[0])]
    ins = [d for r in touched for d in r[0]]
    outs = [d for r in touched for d in r[1]]
    full = np.broadcast_to(factor, [old[d] if d in ins else 1 for d in range(len(old))])
    moved = full.reshape([new[d] if d in outs else 1 for d in range(len(new))])
    return compress(moved)


def compress(labels: np.ndarray) -> np.ndarray:
    """Size 1 along every dimension over which the labels do not change."""
    for dim in varying(labels):
        first = labels.take([0], axis=dim)
        if bool((labels == first).all()):
            labels = first
    return labels


@rule("view", "reshape", "_unsafe_view", "view_copy", "flatten", "unflatten")
def reshape(tracer: Tracer, node: fx.Node) -> Factors:
    """Any reshape: the shapes of the input and the output say everything."""
    x = node.args[0]
    old, new = shape_of(x), shape_of(node)
    return tuple(reshape_factor(f, old, new) for f in tracer.of(x))


@rule("reshape_as", "view_as")
def reshape_as(tracer: Tracer, node: fx.Node) -> Factors:
    """A reshape to the sizes of another tensor, which must shrink with the result."""
    other, shape = node.args[1], shape_of(node)
    moved: Factors = reshape(tracer, node)  # type: ignore[assignment]
    return combine(tracer, node, [(moved, shape), (tracer.of(other), shape)], shape)


@rule("squeeze", "unsqueeze")
def insert_or_drop(tracer: Tracer, node: fx.Node) -> Factors:
    """Dimensions of length one come and go."""
    return reshape(tracer, node)  # type: ignore[return-value]


@rule("permute", "movedim", "transpose", "t", "numpy_T", "mT", "swapaxes", "swapdims")
def permute(tracer: Tracer, node: fx.Node) -> Factors:
    """Dimensions change places; found by doing the same to the dimensions' numbers."""
    x = node.args[0]
    ndim = len(shape_of(x))
    order = _order(node, ndim)
    return tuple(f.transpose(order) for f in tracer.of(x))


def _order(node: fx.Node, ndim: int) -> list[int]:
    name = str(node.target)
    order = list(range(ndim))
    if "permute" in name:
        return [int(d) % ndim for d in argument(node, 1, "dims")]
    if "movedim" in name:
        source: Any = node.args[1]
        target: Any = node.args[2]
        sources = source if isinstance(source, list | tuple) else [source]
        targets = target if isinstance(target, list | tuple) else [target]
        return [int(d) for d in np.moveaxis(np.empty(order), sources, targets).shape]
    if "transpose" in name or "swap" in name:
        a, b = (int(d) % ndim for d in node.args[1:3])  # type: ignore[arg-type]
    elif "mT" in name:
        a, b = ndim - 2, ndim - 1
    else:
        return order[::-1]
    order[a], order[b] = order[b], order[a]
    return order


@rule("expand", "expand_copy", "broadcast_to")
def expand(tracer: Tracer, node: fx.Node) -> Factors:
    """Dimensions of length one are repeated: no labels there."""
    ndim = len(shape_of(node))
    return tuple(f.reshape((1,) * (ndim - f.ndim) + f.shape) for f in tracer.of(node.args[0]))


@rule("expand_as")
def expand_as(tracer: Tracer, node: fx.Node) -> Factors:
    """Repeated to the shape of another value, whose dimensions it meets."""
    x, other = node.args[:2]
    operands = [(tracer.of(a), shape_of(a)) for a in (x, other)]
    return combine(tracer, node, operands, shape_of(node))


@rule("repeat", "tile")
def repeat(tracer: Tracer, node: fx.Node) -> Factors:
    """The whole tensor several times along each dimension."""
    ndim = len(shape_of(node))
    counts: Any = node.args[1]
    counts = [1] * (ndim - len(counts)) + list(counts)
    result: list[np.ndarray] = []
    for factor in tracer.of(node.args[0]):
        factor = factor.reshape((1,) * (ndim - factor.ndim) + factor.shape)
        result.append(
            np.tile(factor, [c if s > 1 else 1 for c, s in zip(counts, factor.shape, strict=True)])
        )
    return tuple(result)


@rule("repeat_interleave.self_int")
def repeat_interleave(tracer: Tracer, node: fx.Node) -> Factors:
    """Every element along a dimension several times."""
    x, count, dim = node.args[0], argument(node, 1, "repeats"), argument(node, 2, "dim")
    if dim is None or node.kwargs.get("output_size") is not None:
        raise UnsupportedForm("flattens first, or is told its size")
    dim %= len(shape_of(x))
    factors = tracer.of(x)
    return tuple(np.repeat(f, count, axis=dim) if f.shape[dim] > 1 else f for f in factors)


@rule("slice", "narrow")
def take_slice(tracer: Tracer, node: fx.Node) -> Factors:
    """A range of positions along one dimension."""
    x = node.args[0]
    shape = shape_of(x)
    dim = int(argument(node, 1, "dim", 0)) % len(shape)
    factors = tracer.of(x)
    positions = slice_range(node, shape[dim])
    if len(positions) == shape[dim] or not any(f.shape[dim] > 1 for f in factors):
        return factors
    if len(positions) == 0:
        raise UnsupportedForm("an empty slice")
    if argument(node, 4, "step", 1) != 1 and is_written(node):
        raise UnsupportedForm("a strided slice is written to in place")
    return tuple(f.take(positions, axis=dim) if f.shape[dim] > 1 else f for f in factors)


def is_written(node: fx.Node) -> bool:
    """Whether a value, or a view of it, is changed in place."""
    return any(mutates(user) or (is_view(user) and is_written(user)) for user in node.users)


def mutates(node: fx.Node) -> bool:
    """Whether a call changes an operand in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def is_view(node: fx.Node) -> bool:
    """Whether a call's result may lie in the memory of its first operand."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(r.alias_info is not None for r in schema.returns)


def slice_range(node: fx.Node, size: int) -> np.ndarray:
    """The positions that a slice takes of a dimension of length `size`."""
    if "narrow" in str(node.target):
        start = int(node.args[2])  # type: ignore[arg-type]
        return np.arange(size)[start:][: int(node.args[3])]  # type: ignore[arg-type]
    start, end = argument(node, 2, "start"), argument(node, 3, "end")
    return np.arange(size)[start : end : argument(node, 4, "step", 1)]


@rule("select")
def select(tracer: Tracer, node: fx.Node) -> Factors:
    """One position along a dimension: that one must stay."""
    x = node.args[0]
    ndim = len(shape_of(x))
    dim, index = int(node.args[1]) % ndim, int(node.args[2])  # type: ignore[arg-type]
    result: list[np.ndarray] = []
    for factor in tracer.of(x):
        if factor.shape[dim] > 1 and len(varying(factor)) > 1:
            (factor,) = tracer.fix_dim((factor,), dim, node, "")
        if factor.shape[dim] > 1:
            tracer.freeze(factor.take([index], axis=dim), node, "a single channel is selected")
        else:
            result.append(factor.squeeze(dim))
    return tuple(result)


@rule("chunk", "split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "tensor_split")
def split(tracer: Tracer, node: fx.Node) -> Outputs:
    """Consecutive pieces; their sizes are those of the outputs."""
    x = node.args[0]
    dim = int(argument(node, 2, "dim", 0)) % len(shape_of(x))
    ends = np.cumsum(split_sizes(node, dim))
    pieces = [np.split(f, ends[:-1], axis=dim) if f.shape[dim] > 1 else None for f in tracer.of(x)]
    whole = tracer.of(x)
    return Outputs(
        tuple(f if p is None else p[i] for f, p in zip(whole, pieces, strict=True))
        for i in range(len(ends))
    )


def split_sizes(node: fx.Node, dim: int) -> list[int]:
    """The length of every piece of a split along `dim`."""
    return [int(piece.shape[dim]) for piece in node.meta["val"]]


@rule("unbind")
def unbind(tracer: Tracer, node: fx.Node) -> Outputs:
    """One output for each position along a dimension, which keeps its length."""
    x = node.args[0]
    dim = int(argument(node, 1, "dim", 0)) % len(shape_of(x))
    factors = tracer.fix_dim(tracer.of(x), dim, node, "the number of outputs is fixed")
    return Outputs(tuple(f.squeeze(dim) for f in factors) for _ in range(shape_of(x)[dim]))
