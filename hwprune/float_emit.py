"""A folded `Program` -> the graph of operators that its float32 C is made of.

Steps and the order in which values lie are those of quantization (`quantize/steps`, `placement`);
there are no scales.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from hwprune import float_graph as floats
from hwprune.errors import LoweringError
from hwprune.lower.aten import aten_call
from hwprune.lower.epilogue import unary_step
from hwprune.lower.root import shape
from hwprune.program import Program
from hwprune.quantize import emit_movement
from hwprune.quantize import graph as ops
from hwprune.quantize.emitter import Emitter
from hwprune.quantize.graph import FLOAT32, IntegerGraph
from hwprune.quantize.placement import NHWC, Order, Placement, plain, usual
from hwprune.quantize.scheme import Params, Scheme
from hwprune.quantize.steps import QuantStep, check_float, find_steps


class _Floats(Placement):
    """Values are float32 unless said otherwise."""

    def put(self, node: fx.Node, order: Order, name: str = "", dtype: str = FLOAT32) -> str:
        return super().put(node, order, name, dtype)


def emit_floats(program: Program) -> IntegerGraph:
    """The float32 graph of a folded program (`fold_for_integers`).

    What no kernel is written for is a `Float` operator, as in int8 networks that ask for it.
    Raises LoweringError for values that are no float32 tensors, with their place.
    """
    scheme = Scheme(defaultdict(lambda: Params(1.0, 0)))
    e = Emitter(program, scheme, _Floats(scheme))
    nodes = [node for node in program.module.graph.nodes if node.op == "placeholder"]
    names = tuple(e.at.put(node, usual(len(shape(node)))) for node in nodes)
    for step in find_steps(program, float_fallback=True):
        _EMIT[step.kind](e, step)
    results = tree_leaves(program.module.graph.output_node().args[0])
    if not all(isinstance(node, fx.Node) and node in e.at.placed for node in results):
        raise LoweringError("an output is no tensor that depends on the input", where=program.name)
    outputs = tuple(e.at.read(node, usual(len(shape(node)))) for node in results)
    return IntegerGraph(
        program.name, tuple(e.at.tensors.values()), tuple(e.at.operators), names, outputs
    )


def _layer(e: Emitter, step: QuantStep) -> None:
    image = step.kind == "conv2d"
    order = NHWC if image else plain(len(shape(step.result)))
    x, weight = e.at.read(step.inputs[0], order), e.tensor(step.weight)
    bias = None if step.bias is None else e.tensor(step.bias)
    if not image:
        if step.inputs[0] in e.columns:
            weight = weight[:, torch.from_numpy(e.columns[step.inputs[0]])]
        out = e.at.put(step.result, order)
        fields = {"weight": _array(weight), "bias": _bias(bias, weight), "bounds": step.bounds}
        e.at.emit(floats.FloatLinear, step.node, (x,), out, **fields)
        return
    groups = shape(step.inputs[0])[1] // weight.shape[1]
    _convolution(e, step, x, weight.permute(0, 2, 3, 1), bias, groups)


def _affine(e: Emitter, step: QuantStep) -> None:
    """Channels scaled and shifted: a depthwise 1x1 convolution."""
    scale, shift = e.tensor(step.weight), e.tensor(step.bias)
    x = e.at.read(step.inputs[0], NHWC)
    _convolution(e, step, x, scale.reshape(-1, 1, 1, 1), shift, len(scale))


def _convolution(
    e: Emitter, step: QuantStep, x: str, weight: Tensor, bias: Tensor | None, groups: int
) -> None:
    where = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1)} | dict(step.attrs)
    e.at.emit(
        floats.FloatConv2d, step.node, (x,), e.at.put(step.result, NHWC), weight=_array(weight),
        bias=_bias(bias, weight), groups=groups, bounds=step.bounds, **where,
    )  # fmt: skip


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.numpy(), np.float32)


def _bias(bias: Tensor | None, weight: Tensor) -> np.ndarray:
    return np.zeros(len(weight), np.float32) if bias is None else _array(bias)


def _pair(e: Emitter, step: QuantStep) -> None:
    order = e.at.order(step.inputs[0])
    names = [e.at.read(v, order) for v in step.inputs]
    out = e.at.put(step.result, order)
    e.at.emit(floats.FloatPair, step.node, names, out, function=step.kind, bounds=step.bounds)


def _pool(e: Emitter, step: QuantStep) -> None:
    x, attrs = e.at.read(step.inputs[0], NHWC), step.attrs
    e.at.emit(
        floats.FloatPool, step.node, (x,), e.at.put(step.result, NHWC),
        maximum=step.kind == "max_pool", kernel=attrs["kernel"], stride=attrs["stride"],
        padding=attrs["padding"], count_padding=bool(attrs.get("count_include_pad")),
        bounds=step.bounds,
    )  # fmt: skip


def _mean(e: Emitter, step: QuantStep) -> None:
    x = e.at.read(step.inputs[0], NHWC)
    out = e.at.put(step.result, usual(len(shape(step.result))))
    e.at.emit(floats.FloatMean, step.node, (x,), out, bounds=step.bounds)


def _pad(e: Emitter, step: QuantStep) -> None:
    x = e.at.read(step.inputs[0], NHWC)
    out = e.at.put(step.result, NHWC)
    e.at.emit(floats.FloatPad, step.node, (x,), out, padding=step.attrs["padding"])


def _concat(e: Emitter, step: QuantStep) -> None:
    order = e.at.order(step.inputs[0])
    names = [e.at.read(value, order) for value in step.inputs]
    axis = order.index(step.attrs["axis"])
    e.at.emit(ops.Concat, step.node, names, e.at.put(step.result, order), axis=axis)


def _function(e: Emitter, step: QuantStep) -> None:
    unary = unary_step(step.node)
    if unary is None:
        return _float(e, step)
    function, numbers = unary.op, tuple(float(n) for n in unary.args)
    if function == "relu":
        function, numbers = "clamp", (0.0, math.inf)
    name, order = e.at.placed[step.inputs[0]]
    out = e.at.put(step.result, order)
    e.at.emit(floats.FloatFunction, step.node, (name,), out, function=function, numbers=numbers)


def _prelu(e: Emitter, step: QuantStep) -> None:
    order = usual(len(shape(step.result)))
    x, slope = e.at.read(step.inputs[0], order), _array(e.tensor(step.weight))
    e.at.emit(floats.FloatPrelu, step.node, (x,), e.at.put(step.result, order), slope=slope)


def _softmax(e: Emitter, step: QuantStep) -> None:
    order = plain(len(shape(step.result)))
    x = e.at.read(step.inputs[0], order)
    e.at.emit(floats.FloatSoftmax, step.node, (x,), e.at.put(step.result, order))


def _float(e: Emitter, step: QuantStep) -> None:
    """An operator through TVM's importer; its values lie as torch has them."""
    check_float(step)
    call = aten_call(step.node)
    names = [e.at.read(value, plain(len(shape(value)))) for value in call.inputs]
    out = e.at.put(step.result, plain(len(shape(step.result))))
    params = tuple(e.tensor(p).numpy() for p in call.params)
    e.at.emit(ops.Float, step.node, names, out, workload=call.workload, params=params)


_EMIT: dict[str, Callable[[Any, QuantStep], None]] = {
    "conv2d": _layer,
    "linear": _layer,
    "affine": _affine,
    "add": _pair,
    "mul": _pair,
    "mean": _mean,
    "max_pool": _pool,
    "avg_pool": _pool,
    "pad": _pad,
    "concat": _concat,
    "reshape": emit_movement.reshape,
    "transpose": emit_movement.transpose,
    "lookup": _function,
    "prelu": _prelu,
    "softmax": _softmax,
    "float": _float,
}
