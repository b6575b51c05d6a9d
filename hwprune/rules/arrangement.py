"""Rules of operators that join, pad, reorder and pick channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from hwprune.program import get_tensor, tensor_value
from hwprune.rules.engine import (
    Factors,
    Tracer,
    UnsupportedForm,
    along,
    argument,
    combine,
    rule,
    shape_of,
    varying,
)
from hwprune.rules.movement import compress


@rule("cat", "concat", "concatenate")
def cat(tracer: Tracer, node: fx.Node) -> Factors:
    """Labels along the dimension follow each other, all other dimensions meet."""
    tensors: Any = node.args[0]
    ndim = len(shape_of(node))
    dim = int(argument(node, 1, "dim", 0)) % ndim
    tensors = [t for t in tensors if len(shape_of(t)) == ndim]
    if (whole := _joint_parts(tracer, tensors, dim)) is not None:
        return (np.concatenate(whole, axis=dim),)
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


def _joint_parts(tracer: Tracer, tensors: Sequence[fx.Node], dim: int) -> list[np.ndarray] | None:
    """The labels of pieces that all vary over the same further dimensions, as heads do."""
    factors = [tracer.of(t) for t in tensors]
    if not all(
        len(f) == 1 and f[0].shape[dim] == shape_of(t)[dim]
        for f, t in zip(factors, tensors, strict=True)
    ):
        return None
    others = {tuple(np.delete(f[0].shape, dim)) for f in factors}
    joint = len(others) == 1 and all(len(varying(f[0])) > 1 for f in factors)
    return [f[0] for f in factors] if joint else None


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
    x, argument_ = node.args[0], int(node.args[1])  # type: ignore[arg-type]
    interleaves = "channel_shuffle" in str(node.target)
    dim = 1 if interleaves else len(shape_of(x)) - 3
    result: list[np.ndarray] = []
    for factor in tracer.of(x):
        if interleaves and factor.shape[dim] == 1:
            result.append(factor)
            continue
        if varying(factor) != (dim,):
            raise UnsupportedForm("labels vary over several dimensions")
        if interleaves:
            table = factor.reshape(argument_, -1)
            tracer.unite(table[:1], table)
        elif "pixel_shuffle" in str(node.target):
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
    tracer.freeze_value(index, node, "")
    return _take(tracer, x, index, dim)


def _take(tracer: Tracer, x: Any, index: Any, dim: int) -> Factors:
    factors = tracer.of(x)
    if not any(f.shape[dim] > 1 for f in factors):
        return factors
    positions = constant_index(tracer.module, index)
    return tuple(f.take(positions, axis=dim) if f.shape[dim] > 1 else f for f in factors)


def listed_dim(node: fx.Node) -> int | None:
    """The one dimension that `x[:, positions]` picks from, where they are a constant list."""
    places: Any = node.args[1]
    taken = [d for d, positions in enumerate(places) if positions is not None]
    value = tensor_value(places[taken[0]]) if len(taken) == 1 else None
    constant = value is not None and places[taken[0]].op == "get_attr"
    plain = constant and value is not None and value.ndim == 1 and value.dtype == torch.int64
    return taken[0] if plain else None


@rule("index")
def index(tracer: Tracer, node: fx.Node) -> Factors:
    """`x[:, rows, columns]`: the picked dimensions keep their length, the others pass.

    A constant list of positions along one dimension picks channels.
    """
    if (one := listed_dim(node)) is not None:
        return _take(tracer, node.args[0], node.args[1][one], one)  # type: ignore[index]
    x, listed = node.args[0], list(node.args[1])  # type: ignore[arg-type]
    ndim = len(shape_of(x))
    taken = [d for d, positions in enumerate(listed) if positions is not None]
    if any(_value_dtype(listed[d]) == torch.bool for d in taken):
        raise UnsupportedForm("a mask picks by value")
    factors = tracer.of(x)
    for dim in taken:
        tracer.freeze_value(listed[dim], node, "indices are used by value")
        factors = tracer.fix_dim(factors, dim, node, "positions are picked by value")
    side_by_side = taken == list(range(taken[0], taken[-1] + 1))
    start = taken[0] if side_by_side else 0
    added = len(shape_of(node)) - (ndim - len(taken))
    places = tuple(range(start, start + added))
    return tuple(np.expand_dims(f.squeeze(tuple(taken)), places) for f in factors)


def _value_dtype(arg: Any) -> torch.dtype | None:
    value = tensor_value(arg) if isinstance(arg, fx.Node) else None
    return None if value is None else value.dtype


@rule("unfold")
def unfold(tracer: Tracer, node: fx.Node) -> Factors:
    """`unfold(x, dim, size, step)`: windows along a dimension, which become the last one."""
    x = node.args[0]
    dim = int(node.args[1]) % len(shape_of(x))  # type: ignore[arg-type]
    factors = tracer.fix_dim(tracer.of(x), dim, node, "mixes positions in space")
    return tuple(np.expand_dims(f, -1) for f in factors)


@rule("im2col")
def im2col(tracer: Tracer, node: fx.Node) -> Factors:
    """(..., C, H, W) -> (..., C x window, places): each channel once for each tap."""
    x = node.args[0]
    ndim = len(shape_of(x))
    taps = int(np.prod(node.args[1]))  # type: ignore[arg-type]
    factors = tracer.of(x)
    for dim in (ndim - 2, ndim - 1):
        factors = tracer.fix_dim(factors, dim, node, "mixes positions in space")
    factors = tuple(f.squeeze(-1) for f in factors)
    return tuple(np.repeat(f, taps, axis=-2) if f.shape[-2] > 1 else f for f in factors)


@rule("col2im")
def col2im(tracer: Tracer, node: fx.Node) -> Factors:
    """(..., C x window, places) -> (..., C, H, W): the taps of a channel are united."""
    x = node.args[0]
    ndim = len(shape_of(x))
    taps = int(np.prod(node.args[2]))  # type: ignore[arg-type]
    factors = tracer.fix_dim(tracer.of(x), ndim - 1, node, "mixes positions in space")
    result: list[np.ndarray] = []
    for factor in factors:
        if factor.shape[-2] > 1:
            if len(varying(factor)) > 1:
                raise UnsupportedForm("labels vary over several dimensions")
            table = factor.reshape(-1, taps)
            tracer.unite(table[:, :1], table)
            factor = along(table[:, 0], ndim - 2, ndim)
        result.append(np.expand_dims(factor, -1))
    return tuple(result)


def constant_index(module: fx.GraphModule, index: Any) -> np.ndarray:
    """The values of an index buffer; UnsupportedForm if it is computed."""
    if not isinstance(index, fx.Node) or index.op != "get_attr" or tensor_value(index) is None:
        raise UnsupportedForm("indices are computed")
    values: np.ndarray = get_tensor(module, str(index.target)).detach().cpu().numpy()
    return values
