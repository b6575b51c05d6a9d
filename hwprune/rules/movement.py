"""Rules of operators that only move data: labels move the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from hwprune.program import get_tensor, tensor_value
from hwprune.rules.engine import (
    Factors,
    Outputs,
    Tracer,
    UnsupportedForm,
    along,
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


@rule("view", "reshape", "_unsafe_view", "view_copy", "_reshape_alias", "flatten", "unflatten")
def reshape(tracer: Tracer, node: fx.Node) -> Factors:
    """Any reshape: the shapes of the input and the output say everything."""
    x = node.args[0]
    old, new = shape_of(x), shape_of(node)
    return tuple(reshape_factor(f, old, new) for f in tracer.of(x))


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
    if dim is None:
        raise UnsupportedForm("flattens first")
    dim %= len(shape_of(x))
    factors = tracer.of(x)
    return tuple(np.repeat(f, count, axis=dim) if f.shape[dim] > 1 else f for f in factors)


@rule("slice", "narrow")
def take_slice(tracer: Tracer, node: fx.Node) -> Factors:
    """A range of positions along one dimension."""
    x = node.args[0]
    dim, positions = slice_positions(node)
    if len(positions) == shape_of(x)[dim]:
        return tracer.of(x)
    factors = tracer.of(x)
    return tuple(f.take(positions, axis=dim) if f.shape[dim] > 1 else f for f in factors)


def slice_positions(node: fx.Node) -> tuple[int, np.ndarray]:
    """(dimension, positions taken) of a slice of a tensor of known shape."""
    shape = shape_of(node.args[0])
    dim = int(argument(node, 1, "dim", 0)) % len(shape)
    size = shape[dim]
    if "narrow" in str(node.target):
        start = int(node.args[2])  # type: ignore[arg-type]
        return dim, np.arange(size)[start:][: int(node.args[3])]  # type: ignore[arg-type]
    start, end = argument(node, 2, "start"), argument(node, 3, "end")
    positions = np.arange(size)[start : end : argument(node, 4, "step", 1)]
    return dim, positions


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


@rule("cat", "concat", "concatenate")
def cat(tracer: Tracer, node: fx.Node) -> Factors:
    """Labels along the dimension follow each other, all other dimensions meet."""
    tensors: Any = node.args[0]
    ndim = len(shape_of(node))
    dim = int(argument(node, 1, "dim", 0)) % ndim
    tensors = [t for t in tensors if len(shape_of(t)) == ndim]
    vectors = [tracer.vector(tracer.of(t), dim) for t in tensors]
    parts: list[np.ndarray] = []
    for tensor, vector in zip(tensors, vectors, strict=True):
        if vector is None:
            vector = tracer.fresh(shape_of(tensor)[dim])
            tracer.freeze(vector, node, "reads channels that cannot be removed")
        parts.append(vector)
    operands = []
    for tensor in tensors:
        size = [1 if d == dim else s for d, s in enumerate(shape_of(tensor))]
        operands.append((tuple(f for f in tracer.of(tensor) if f.shape[dim] == 1), size))
    shape = [1 if d == dim else s for d, s in enumerate(shape_of(node))]
    others = combine(tracer, node, operands, shape)
    if all(v is None for v in vectors):
        return others
    return (*others, along(np.concatenate(parts), dim, ndim))


@rule("stack")
def stack(tracer: Tracer, node: fx.Node) -> Factors:
    """Equal shapes side by side along a new dimension of fixed length."""
    tensors: Any = node.args[0]
    ndim = len(shape_of(node))
    dim = int(argument(node, 1, "dim", 0)) % ndim
    operands = []
    for tensor in tensors:
        lifted = tuple(np.expand_dims(f, dim) for f in tracer.of(tensor))
        size = list(shape_of(tensor))
        operands.append((lifted, [*size[:dim], 1, *size[dim:]]))
    shape = [1 if d == dim else s for d, s in enumerate(shape_of(node))]
    return combine(tracer, node, operands, shape)


@rule("flip")
def flip(tracer: Tracer, node: fx.Node) -> Factors:
    """The order along some dimensions is reversed."""
    dims: Any = node.args[1]
    return tuple(np.flip(f, tuple(d % f.ndim for d in dims)) for f in tracer.of(node.args[0]))


@rule("roll")
def roll(tracer: Tracer, node: fx.Node) -> Factors:
    """Positions rotate: those dimensions keep their length."""
    dims: Any = argument(node, 2, "dims", [])
    factors = tracer.of(node.args[0])
    ndim = len(shape_of(node))
    for dim in dims or range(ndim):
        factors = tracer.fix_dim(factors, dim % ndim, node, "channels rotate")
    return factors


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
def shuffle(tracer: Tracer, node: fx.Node) -> Factors:
    """Channels move to space or back, or are interleaved: whole blocks, united within."""
    import torch

    x = node.args[0]
    argument_ = int(node.args[1])  # type: ignore[arg-type]
    result: list[np.ndarray] = []
    for factor in tracer.of(x):
        if str(node.target).startswith("aten.channel_shuffle"):
            dim = 1
            table = factor.reshape(argument_, -1)
            tracer.unite(table[:1], table)
        else:
            dim = len(shape_of(x)) - 3
        if varying(factor) != (dim,):
            raise UnsupportedForm("labels vary over several dimensions")
        if "pixel_shuffle" in str(node.target):
            table = factor.reshape(-1, argument_ * argument_)
            tracer.unite(table[:, :1], table)
        full = torch.from_numpy(np.broadcast_to(factor, shape_of(x)).copy())
        result.append(compress(node.target(full, argument_).numpy()))  # type: ignore[operator]
    return tuple(result)


@rule("constant_pad_nd", "pad")
def pad(tracer: Tracer, node: fx.Node) -> Factors:
    """New positions around a tensor; those beside channels are channels of their own."""
    amounts: Any = node.args[1]
    ndim = len(shape_of(node))
    factors = tracer.of(node.args[0])
    mode = argument(node, 2, "mode", "constant") if "pad.default" in str(node.target) else ""
    plain = mode in ("", "constant") or "constant_pad_nd" in str(node.target)
    for i in range(len(amounts) // 2):
        low, high = amounts[2 * i], amounts[2 * i + 1]
        dim = ndim - 1 - i
        if low == 0 and high == 0:
            continue
        if not plain or low < 0 or high < 0:
            factors = tracer.fix_dim(factors, dim, node, "padding depends on the positions")
            continue
        vector = tracer.vector(factors, dim)
        if vector is not None:
            vector = np.concatenate([tracer.fresh(low), vector, tracer.fresh(high)])
            others = tuple(f for f in factors if f.shape[dim] == 1)
            factors = (*others, along(vector, dim, ndim))
    return factors


@rule("index_select")
def index_select(tracer: Tracer, node: fx.Node) -> Factors:
    """Positions listed in a constant of the graph."""
    x, index = node.args[0], node.args[2]
    dim = int(node.args[1]) % len(shape_of(x))  # type: ignore[arg-type]
    factors = tracer.of(x)
    if not any(f.shape[dim] > 1 for f in factors):
        return factors
    positions = constant_index(tracer.module, index)
    tracer.freeze_value(index, node, "")
    return tuple(f.take(positions, axis=dim) if f.shape[dim] > 1 else f for f in factors)


def constant_index(module: fx.GraphModule, index: Any) -> np.ndarray:
    """The values of an index buffer; UnsupportedForm if it is computed."""
    if not isinstance(index, fx.Node) or index.op != "get_attr" or tensor_value(index) is None:
        raise UnsupportedForm("indices are computed")
    values: np.ndarray = get_tensor(module, str(index.target)).detach().cpu().numpy()
    return values
