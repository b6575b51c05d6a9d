"""Steps, scheme and float weights -> `IntegerGraph`: one function for every kind of step.

A linear layer that reads a flattened image has its columns permuted, as images lie as (N, H, W, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from hwprune.errors import LoweringError
from hwprune.lower.aten import aten_call
from hwprune.lower.functional import get_tensor, packet, place
from hwprune.lower.root import shape
from hwprune.program import Program
from hwprune.quantize import graph as ops
from hwprune.quantize.arithmetic import (
    INT32_MAX,
    SOFTMAX_LIMIT,
    quantize_multiplier,
    softmax_constants,
)
from hwprune.quantize.graph import FLOAT32, INT8_MAX, INT8_MIN, IntegerGraph, Pair
from hwprune.quantize.placement import NHWC, Order, Placement, moves, plain, usual
from hwprune.quantize.reference import dequantize, quantize
from hwprune.quantize.scheme import Params, Scheme
from hwprune.quantize.simulate import slope_scale
from hwprune.quantize.steps import QuantStep, check_float, table_function
from hwprune.quantize.weights import integer_weights

_LEFT_SHIFT = 20  # of the operands of a sum
_SPAN = INT8_MAX - INT8_MIN  # the largest |x - zero_point|


@dataclass
class _Emitter:
    program: Program
    scheme: Scheme
    at: Placement
    columns: dict[fx.Node, np.ndarray] = field(default_factory=dict)  # of flattened images

    def tensor(self, node: Any) -> Tensor:
        return get_tensor(self.program.module, str(node.target)).detach()

    def of(self, node: fx.Node) -> Params:
        return self.scheme.of(node.name)


def emit(
    program: Program, steps: Sequence[QuantStep], scheme: Scheme
) -> tuple[IntegerGraph, dict[str, tuple[str, Order]]]:
    """The integer graph, and where the value of every node lies: (tensor, order of axes).

    Raises LoweringError where an accumulator can overflow.
    """
    emitter = _Emitter(program, scheme, Placement(scheme))
    inputs = [node for node in program.module.graph.nodes if node.op == "placeholder"]
    names = tuple(emitter.at.put(node, usual(len(shape(node)))) for node in inputs)
    for step in steps:
        _EMIT[step.kind](emitter, step)
    results = tree_leaves(program.module.graph.output_node().args[0])
    outputs = tuple(emitter.at.read(node, usual(len(shape(node)))) for node in results)
    tensors = tuple(emitter.at.tensors.values())
    graph = IntegerGraph(program.name, tensors, tuple(emitter.at.operators), names, outputs)
    return graph, {node.name: found for node, found in emitter.at.placed.items()}


def _clamp(step: QuantStep, params: Params) -> Pair:
    """The integers of the bounds (CalculateActivationRangeQuantized of TensorFlow Lite)."""
    ends = np.clip(np.array(step.bounds, np.float32), -1e30, 1e30)
    low, high = quantize(ends, params.scale, params.zero_point)
    return int(low), int(high)


def _multiplier(real: float, reach: float, step: QuantStep) -> tuple[int, int]:
    """The multiplier and shift for values of up to `reach`, which must not leave 32 bits."""
    multiplier, shift = quantize_multiplier(real)
    if reach * 2.0 ** max(shift, 0) > INT32_MAX:
        raise LoweringError(
            f"requantizing by {real:.4g} overflows 32 bits",
            where=place(step.node),
            hint="the ranges of what it reads and makes are too different: check the calibration",
        )
    return multiplier, shift


def _layer(e: _Emitter, step: QuantStep) -> None:
    order = NHWC if step.kind == "conv2d" else plain(len(shape(step.result)))
    x = e.at.read(step.inputs[0], order)
    bias = None if step.bias is None else e.tensor(step.bias)
    weight = e.tensor(step.weight)
    if step.inputs[0] in e.columns:
        weight = weight[:, torch.from_numpy(e.columns[step.inputs[0]])]
    groups = 1
    if step.kind == "conv2d":
        groups = shape(step.inputs[0])[1] // weight.shape[1]
        weight = weight.permute(0, 2, 3, 1)
    _weighted(e, step, x, weight.contiguous(), bias, groups)


def _affine(e: _Emitter, step: QuantStep) -> None:
    """Channels scaled and shifted: a depthwise 1x1 convolution."""
    x = e.at.read(step.inputs[0], NHWC)
    scale, shift = e.tensor(step.weight), e.tensor(step.bias)
    _weighted(e, step, x, scale.reshape(-1, 1, 1, 1), shift, len(scale))


def _weighted(
    e: _Emitter, step: QuantStep, x: str, weight: Tensor, bias: Tensor | None, groups: int
) -> None:
    result = e.of(step.result)
    done = integer_weights(weight, bias, e.of(step.inputs[0]), result, place(step.node))
    fields: dict[str, Any] = {
        "weight": done.weight, "bias": done.bias, "multiplier": done.multiplier,
        "shift": done.shift, "clamp": _clamp(step, result),
    }  # fmt: skip
    if step.kind == "linear":
        out = e.at.put(step.result, plain(len(shape(step.result))))
        e.at.emit(ops.Linear, step.node, (x,), out, **fields)
        return
    where = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1)} | dict(step.attrs)
    out = e.at.put(step.result, NHWC)
    e.at.emit(ops.Conv2d, step.node, (x,), out, groups=groups, **where, **fields)


def _add(e: _Emitter, step: QuantStep) -> None:
    order = e.at.order(step.inputs[0])
    names = [e.at.read(v, order) for v in step.inputs]
    scales = [e.of(v).scale for v in step.inputs]
    result, widest = e.of(step.result), 2.0 * max(scales)
    reals = [s / widest for s in scales] + [widest / ((1 << _LEFT_SHIFT) * result.scale)]
    reach = float(_SPAN << _LEFT_SHIFT)
    pairs = [_multiplier(real, reach, step) for real in reals]
    multiplier, shift = zip(*pairs, strict=True)
    e.at.emit(
        ops.Add, step.node, names, e.at.put(step.result, order), multiplier=multiplier,
        shift=shift, clamp=_clamp(step, result), left_shift=_LEFT_SHIFT,
    )  # fmt: skip


def _mul(e: _Emitter, step: QuantStep) -> None:
    order = e.at.order(step.inputs[0])
    names = [e.at.read(v, order) for v in step.inputs]
    first, second, result = (e.of(v) for v in (*step.inputs, step.result))
    real = first.scale * second.scale / result.scale
    _scaled(e, step, ops.Mul, names, order, real, _SPAN**2)


def _mean(e: _Emitter, step: QuantStep) -> None:
    x = e.at.read(step.inputs[0], NHWC)
    count = int(np.prod(shape(step.inputs[0])[2:]))
    real = e.of(step.inputs[0]).scale / (count * e.of(step.result).scale)
    _scaled(e, step, ops.Mean, [x], usual(len(shape(step.result))), real, _SPAN * count)


def _scaled(
    e: _Emitter,
    step: QuantStep,
    kind: type[ops.Operator],
    names: Sequence[str],
    order: tuple[int, ...],
    real: float,
    reach: float,
) -> None:
    """An operator with one multiplier."""
    multiplier, shift = _multiplier(real, reach, step)
    clamp = _clamp(step, e.of(step.result))
    out = e.at.put(step.result, order)
    e.at.emit(kind, step.node, names, out, multiplier=multiplier, shift=shift, clamp=clamp)


def _pool(e: _Emitter, step: QuantStep) -> None:
    x, clamp = e.at.read(step.inputs[0], NHWC), _clamp(step, e.of(step.result))
    padding = step.attrs["padding"]
    if step.kind == "avg_pool" and any(padding) and step.attrs["count_include_pad"]:
        x, padding = _padded(e, step, x), (0, 0, 0, 0)
    fields = {"kernel": step.attrs["kernel"], "stride": step.attrs["stride"], "padding": padding}
    kind = ops.MaxPool if step.kind == "max_pool" else ops.AvgPool
    e.at.emit(kind, step.node, (x,), e.at.put(step.result, NHWC), clamp=clamp, **fields)


def _padded(e: _Emitter, step: QuantStep, x: str) -> str:
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


def _pad(e: _Emitter, step: QuantStep) -> None:
    x, zero = e.at.read(step.inputs[0], NHWC), e.of(step.result).zero_point
    out = e.at.put(step.result, NHWC)
    e.at.emit(ops.Pad, step.node, (x,), out, padding=step.attrs["padding"], value=zero)


def _concat(e: _Emitter, step: QuantStep) -> None:
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


def _requantized(e: _Emitter, step: QuantStep, x: str, name: str, result: Params) -> str:
    before = e.at.tensors[x]
    multiplier, shift = _multiplier(before.scale / result.scale, _SPAN, step)
    e.at.tensors[name] = ops.IntegerTensor(
        name, before.shape, before.dtype, result.scale, result.zero_point
    )
    fields = {"multiplier": multiplier, "shift": shift, "clamp": (INT8_MIN, INT8_MAX)}
    e.at.emit(ops.Requantize, step.node, (x,), name, **fields)
    return name


def _reshape(e: _Emitter, step: QuantStep) -> None:
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


def _transpose(e: _Emitter, step: QuantStep) -> None:
    name, order = e.at.placed[step.inputs[0]]
    axes = list(step.attrs["axes"])
    e.at.placed[step.result] = (name, tuple(axes.index(d) for d in order))


def _lookup(e: _Emitter, step: QuantStep) -> None:
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


def _prelu(e: _Emitter, step: QuantStep) -> None:
    order = usual(len(shape(step.result)))
    x = e.at.read(step.inputs[0], order)
    slope = e.tensor(step.weight)
    unit = slope_scale(slope)
    integers = torch.round(slope / unit).clamp(-INT8_MAX, INT8_MAX).to(torch.int8).numpy()
    source, result = e.of(step.inputs[0]), e.of(step.result)
    above = _multiplier(source.scale / result.scale, _SPAN, step)
    below = _multiplier(source.scale * unit / result.scale, _SPAN * INT8_MAX, step)
    multiplier, shift = zip(above, below, strict=True)
    e.at.emit(
        ops.Prelu, step.node, (x,), e.at.put(step.result, order), slope=integers,
        multiplier=multiplier, shift=shift, clamp=_clamp(step, result),
    )  # fmt: skip


def _softmax(e: _Emitter, step: QuantStep) -> None:
    order = plain(len(shape(step.result)))
    if shape(step.result)[-1] > SOFTMAX_LIMIT:
        raise LoweringError(
            f"no int8 kernel for a softmax of more than {SOFTMAX_LIMIT} values",
            where=place(step.node),
            hint="leave it out: it changes no order of the logits",
        )
    x = e.at.read(step.inputs[0], order)
    multiplier, shift, diff_min = softmax_constants(e.of(step.inputs[0]).scale)
    fields = {"multiplier": multiplier, "shift": shift, "diff_min": diff_min}
    e.at.emit(ops.Softmax, step.node, (x,), e.at.put(step.result, order), **fields)


def _float(e: _Emitter, step: QuantStep) -> None:
    """The operator in float32 between dequantize and quantize."""
    check_float(step)
    call = aten_call(step.node)
    names = [e.at.read_float(value) for value in call.inputs]
    order = plain(len(shape(step.result)))
    real = e.at.put(step.result, order, f"{step.result.name}_result", FLOAT32)
    params = tuple(e.tensor(p).numpy() for p in call.params)
    e.at.emit(ops.Float, step.node, names, real, workload=call.workload, params=params)
    e.at.emit(ops.Quantize, step.node, (real,), e.at.put(step.result, order))


_EMIT: dict[str, Callable[[_Emitter, QuantStep], None]] = {
    "conv2d": _layer,
    "linear": _layer,
    "affine": _affine,
    "add": _add,
    "mul": _mul,
    "mean": _mean,
    "max_pool": _pool,
    "avg_pool": _pool,
    "pad": _pad,
    "concat": _concat,
    "reshape": _reshape,
    "transpose": _transpose,
    "lookup": _lookup,
    "prelu": _prelu,
    "softmax": _softmax,
    "float": _float,
}
