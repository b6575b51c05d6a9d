"""Rules of operators that multiply channels with parameters: inputs link, outputs are new."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from hwprune.rules.engine import (
    Choice,
    Edges,
    Factors,
    Tracer,
    UnsupportedForm,
    along,
    argument,
    operator_names,
    rule,
    shape_of,
    varying,
)
from hwprune.rules.product import NO_CHANNELS, products
from hwprune.rules.silence import vanishes

_MOVES = frozenset(
    [
        "view",
        "reshape",
        "permute",
        "transpose",
        "t",
        "numpy_T",
        "mT",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "slice",
        "select",
        "chunk",
        "split",
        "split_with_sizes",
        "unbind",
        "cat",
        "clone",
        "contiguous",
        "detach",
        "alias",
        "to",
        "_to_copy",
        "mul",
        "neg",
        "movedim",
        "lift_fresh_copy",
    ]
)


def is_weight(arg: Any) -> bool:
    """Whether a value is a parameter, or parameters moved and multiplied: zeros stay zeros."""
    if not isinstance(arg, fx.Node):
        return True
    if arg.op == "get_attr":
        return True
    known = operator_names(arg)[1] in _MOVES or "getitem" in str(arg.target)
    return arg.op == "call_function" and known and all(is_weight(a) for a in arg.all_input_nodes)


def _weight(tracer: Tracer, node: fx.Node, position: int) -> fx.Node:
    weight = node.args[position]
    if not isinstance(weight, fx.Node) or not (is_weight(weight) or vanishes(tracer, weight)):
        raise UnsupportedForm("the weight is computed and may be nonzero in silenced channels")
    return weight


def _link(
    tracer: Tracer, node: fx.Node, x: Any, dim: int, weight_axis: np.ndarray | None
) -> Factors:
    """Unite a contracted dimension with the weight's axis; what is left of x's factors."""
    factors = tracer.of(x)
    tracer.unite_axes(tracer.vector(factors, dim), weight_axis, node, NO_CHANNELS)
    return tuple(f for f in factors if f.shape[dim] == 1)


def _emit(
    tracer: Tracer, node: fx.Node, others: Factors, axis: np.ndarray | None, dim: int, bias: Any
) -> Factors:
    """The output's factors: what passed, and the weight's output axis, shared with the bias."""
    ndim = len(shape_of(node))
    if isinstance(bias, fx.Node):
        b = tracer.of(bias)
        last = len(shape_of(bias)) - 1
        tracer.unite_axes(tracer.vector(b, last), axis, node, NO_CHANNELS)
        for factor in b:
            if factor.shape[last] == 1:
                tracer.freeze(factor, node, "meets a dimension whose size is fixed")
    return others if axis is None else (*others, along(axis, dim % ndim, ndim))


@rule("linear")
def linear(tracer: Tracer, node: fx.Node) -> Factors:
    """`x @ weight.T + bias`."""
    x, weight = node.args[0], _weight(tracer, node, 1)
    w = tracer.of(weight)
    others = _link(tracer, node, x, len(shape_of(x)) - 1, tracer.vector(w, 1))
    return _emit(tracer, node, others, tracer.vector(w, 0), -1, argument(node, 2, "bias"))


@rule("mm", "matmul")
def matmul(tracer: Tracer, node: fx.Node) -> Factors:
    """`x @ weight` with a two-dimensional weight, or of activations."""
    x, weight = node.args[:2]
    if is_weight(weight) and len(shape_of(weight)) == 2:
        return _times(tracer, node, x, _weight(tracer, node, 1), None)
    return products(tracer, node, x, weight)


@rule("addmm")
def addmm(tracer: Tracer, node: fx.Node) -> Factors:
    """`bias + x @ weight`."""
    return _times(tracer, node, node.args[1], _weight(tracer, node, 2), node.args[0])


def _times(tracer: Tracer, node: fx.Node, x: Any, weight: fx.Node, bias: Any) -> Factors:
    if len(shape_of(weight)) != 2:
        raise UnsupportedForm("the weight has more than two dimensions")
    w = tracer.of(weight)
    others = _link(tracer, node, x, len(shape_of(x)) - 1, tracer.vector(w, 0))
    return _emit(tracer, node, others, tracer.vector(w, 1), -1, bias)


@rule("embedding")
def embedding(tracer: Tracer, node: fx.Node) -> Factors:
    """Rows of a table: the rows stay, the columns are channels."""
    table = tracer.of(_weight(tracer, node, 0))
    tracer.freeze(tracer.vector(table, 0), node, "rows are looked up by value")
    tracer.freeze_value(node.args[1], node, "indices are used by value")
    return _emit(tracer, node, (), tracer.vector(table, 1), -1, None)


@rule("conv1d", "conv2d", "conv3d")
def conv(tracer: Tracer, node: fx.Node) -> Factors:
    """`conv(x, weight (O, I / groups, ...), bias, stride, padding, dilation, groups)`."""
    return _conv(tracer, node, int(argument(node, 6, "groups", 1)), transposed=False)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(tracer: Tracer, node: fx.Node) -> Factors:
    """`conv_transpose(x, weight (I, O / groups, ...), bias, stride, padding, out, groups)`."""
    return _conv(tracer, node, int(argument(node, 6, "groups", 1)), transposed=True)


@rule("convolution")
def convolution(tracer: Tracer, node: fx.Node) -> Factors:
    """The general form: `(x, weight, bias, stride, padding, dilation, transposed, out, groups)`."""
    return _conv(tracer, node, int(node.args[8]), transposed=bool(node.args[6]))  # type: ignore[arg-type]


def _conv(tracer: Tracer, node: fx.Node, groups: int, *, transposed: bool) -> Factors:
    x, weight = node.args[0], _weight(tracer, node, 1)
    spatial = len(shape_of(weight)) - 2
    named = re.search(r"([123])d", operator_names(node)[1])
    if named is not None and int(named[1]) != spatial:
        raise UnsupportedForm("the weight's dimensions do not fit")
    channel = len(shape_of(x)) - spatial - 1
    factors = tracer.of(x)
    space = range(channel + 1, channel + 1 + spatial)
    for dim in [d for d in space if not _pointwise(node, d - channel - 1)]:
        factors = tracer.fix_dim(factors, dim, node, "mixes positions in space")
    others = tuple(f for f in factors if f.shape[channel] == 1)
    if any(d < channel for f in others for d in varying(f)):
        raise UnsupportedForm("channels vary over the batch")
    w = tracer.of(weight)
    for dim in range(2, 2 + spatial):
        tracer.freeze(tracer.vector(w, dim), node, "")
    data = tracer.vector(factors, channel)
    bias = argument(node, 2, "bias")
    if groups == 1:
        into, out = (0, 1) if transposed else (1, 0)
        tracer.unite_axes(data, tracer.vector(w, into), node, NO_CHANNELS)
        return _emit(tracer, node, others, tracer.vector(w, out), channel, bias)
    first, second = tracer.vector(w, 0), tracer.vector(w, 1)
    if transposed:
        if others:
            raise UnsupportedForm("channels vary over space")
        return _grouped_transposed(tracer, node, groups, (data, first, second), channel, bias)
    _grouped(tracer, node, groups, data, first, second)
    return _emit(tracer, node, others, first, channel, bias)


def _pointwise(node: fx.Node, place: int) -> bool:
    """Whether a convolution works on every position along a dimension in space alone."""

    def at(position: int, name: str, default: int) -> Any:
        listed = argument(node, position, name, default)
        if isinstance(listed, list | tuple):
            return listed[place] if len(listed) > 1 else listed[0]
        return 0 if isinstance(listed, str) else listed

    plain = at(3, "stride", 1) == 1 and at(4, "padding", 0) == 0
    return plain and shape_of(node.args[1])[2 + place] == 1


def same_group(labels: np.ndarray, groups: int) -> Edges:
    """Unions of all channels of each group."""
    table = labels.reshape(groups, -1)
    return np.broadcast_to(table[:, :1], table.shape).ravel(), table.ravel()


def same_offset(labels: np.ndarray, groups: int) -> Edges:
    """Unions of the channels that have the same place in their groups."""
    table = labels.reshape(groups, -1)
    return np.broadcast_to(table[:1], table.shape).ravel(), table.ravel()


def _grouped(
    tracer: Tracer,
    node: fx.Node,
    groups: int,
    data: np.ndarray | None,
    output: np.ndarray | None,
    within: np.ndarray | None,
) -> None:
    """Two ways to keep a grouped convolution dense: drop whole groups, or offsets in each."""
    if output is None:
        tracer.freeze(data, node, "a single output channel")
        return
    heads = output.reshape(groups, -1)[:, 0]
    wholes: list[Edges] = [same_group(output, groups)]
    offsets: list[Edges] = [same_offset(output, groups)]
    stay: Sequence[np.ndarray] = [within] if within is not None else []
    if data is None:
        tracer.freeze(within, node, NO_CHANNELS)
        stay = [*stay, output]
    else:
        table = data.reshape(groups, -1)
        wholes += [same_group(data, groups), (table[:, 0], heads)]
        offsets += [same_offset(data, groups)]
        if within is not None:
            offsets += [(table[0], within)]
        else:
            offsets = wholes  # one input channel a group: both ways are the same
    whole_only = np.concatenate(stay) if stay else np.zeros(0, np.int64)
    per_group = 0 if offsets is wholes else len(output) // groups
    reason = NO_CHANNELS if data is None else ""
    tracer.choices.append(
        Choice(
            node, "grouped", tuple(wholes), tuple(offsets), output, per_group, whole_only, reason
        )
    )


def _grouped_transposed(
    tracer: Tracer,
    node: fx.Node,
    groups: int,
    axes: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None],
    channel: int,
    bias: Any,
) -> Factors:
    """Units are whole groups where each has one output channel, else everything stays."""
    data, first, second = axes
    if second is not None or data is None or first is None:
        raise UnsupportedForm("grouped transposed convolution with several outputs a group")
    tracer.unite(data, first)
    a, b = same_group(first, groups)
    tracer.unite(a, b)
    return _emit(tracer, node, (), first.reshape(groups, -1)[:, 0], channel, bias)
