"""Steps that choose, move or look up values -> operators.

A linear layer that reads a flattened image has its columns permuted, as images lie as (N, H, W, C).
"""

from __future__ import annotations

import numpy as np
import torch

from hwprune.lower.functional import packet
from hwprune.lower.root import shape
from hwprune.quantize import graph as ops
from hwprune.quantize.emitter import SPAN, Emitter, clamp_of, multiplier_of
from hwprune.quantize.graph import INT8_MAX, INT8_MIN
from hwprune.quantize.placement import NHWC, moves, plain
from hwprune.quantize.reference import dequantize, quantize
from hwprune.quantize.scheme import Params
from hwprune.quantize.steps import QuantStep, table_function


def pool(e: Emitter, step: QuantStep) -> None:
    """A maximum or an average over windows."""
    x, clamp = e.at.read(step.inputs[0], NHWC), clamp_of(step, e.of(step.result))
    padding = step.attrs["padding"]
    if step.kind == "avg_pool" and any(padding) and step.attrs["count_include_pad"]:
        x, padding = _padded(e, step, x), (0, 0, 0, 0)
    fields = {"kernel": step.attrs["kernel"], "stride": step.attrs["stride"], "padding": padding}
    kind = ops.MaxPool if step.kind == "max_pool" else ops.AvgPool
    e.at.emit(kind, step.node, (x,), e.at.put(step.result, NHWC), clamp=clamp, **fields)


def _padded(e: Emitter, step: QuantStep, x: str) -> str:
    """A tensor with zeros around it that count."""
    top, left, bottom, right = step.attrs["padding"]
    before, name = e.at.tensors[x], f"{x}_padded_{step.node.name}"
    n, height, width, channels = before.shape
    sizes = (n, height + top + bottom, width + left + right, channels)
    e.at.tensors[name] = ops.IntegerTensor(
        name, sizes, before.dtype, before.scale, before.zero_point
    )
    pads = step.attrs["padding"]
    e.at.emit(ops.Pad, step.node, (x,), name, padding=pads, value=before.zero_point)
    return name


def pad(e: Emitter, step: QuantStep) -> None:
    """Zeros around an image."""
    x, zero = e.at.read(step.inputs[0], NHWC), e.of(step.result).zero_point
    out = e.at.put(step.result, NHWC)
    e.at.emit(ops.Pad, step.node, (x,), out, padding=step.attrs["padding"], value=zero)


def concat(e: Emitter, step: QuantStep) -> None:
    """Values side by side; those of another scale are requantized."""
    order = e.at.order(step.inputs[0])
    result = e.of(step.result)
    names = []
    for i, value in enumerate(step.inputs):
        name, source = e.at.read(value, order), e.of(value)
        if source != result:
            name = _requantized(e, step, name, f"{name}_{step.node.name}_{i}", result)
        names.append(name)
    axis = order.index(step.attrs["axis"])
    e.at.emit(ops.Concat, step.node, names, e.at.put(step.result, order), axis=axis)


def _requantized(e: Emitter, step: QuantStep, x: str, name: str, result: Params) -> str:
    before = e.at.tensors[x]
    multiplier, shift = multiplier_of(before.scale / result.scale, SPAN, step)
    e.at.tensors[name] = ops.IntegerTensor(
        name, before.shape, before.dtype, result.scale, result.zero_point
    )
    fields = {"multiplier": multiplier, "shift": shift, "clamp": (INT8_MIN, INT8_MAX)}
    e.at.emit(ops.Requantize, step.node, (x,), name, **fields)
    return name


def reshape(e: Emitter, step: QuantStep) -> None:
    """Another shape; how a flattened image lies is remembered for the linear layers."""
    source, sizes = step.inputs[0], shape(step.result)
    name, order = e.at.placed[source]
    identity = plain(len(order))
    if moves(shape(source), order, identity):
        linear = all(packet(user) == "aten.linear" for user in step.result.users)
        if linear and len(sizes) == 2:
            numbers = np.arange(sizes[1]).reshape(shape(source))
            e.columns[step.result] = numbers.transpose(order).reshape(-1)
        else:
            name = e.at.read(source, identity)
    if e.at.tensors[name].shape == sizes:
        e.at.placed[step.result] = (name, plain(len(sizes)))
        return
    e.at.emit(ops.Reshape, step.node, (name,), e.at.put(step.result, plain(len(sizes))))


def transpose(e: Emitter, step: QuantStep) -> None:
    """Nothing moves: only the order of axes is another."""
    name, order = e.at.placed[step.inputs[0]]
    axes = list(step.attrs["axes"])
    e.at.placed[step.result] = (name, tuple(axes.index(d) for d in order))


def lookup(e: Emitter, step: QuantStep) -> None:
    """A function as a table."""
    name, order = e.at.placed[step.inputs[0]]
    source, result = e.of(step.inputs[0]), e.of(step.result)
    every = np.arange(INT8_MIN, INT8_MAX + 1, dtype=np.int16)
    with torch.no_grad():
        real = torch.from_numpy(dequantize(every, source.scale, source.zero_point))
        values = torch.nan_to_num(table_function(step)(real)).numpy()
    table = quantize(values, result.scale, result.zero_point)
    function = packet(step.node).removeprefix("aten.") or "affine"
    out = e.at.put(step.result, order)
    e.at.emit(ops.Lookup, step.node, (name,), out, table=table, function=function)
