"""Operator -> kernel: the schedule rule of every operator of an `IntegerGraph` on a core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hwprune import float_graph as floats
from hwprune.errors import LoweringError
from hwprune.lower.linear_as_conv import as_convolution
from hwprune.lower.mcu import (
    conv,
    depthwise,
    elementwise,
    fallback,
    float_conv,
    float_values,
    helium,
    helium_depthwise,
    move,
    plain,
    pool,
)
from hwprune.lower.mcu.emit import CKernel
from hwprune.quantize import graph as ops
from hwprune.quantize.graph import IntegerTensor

Rule = Callable[[Any, Sequence[IntegerTensor], IntegerTensor], CKernel]

_RULES: dict[type[ops.Operator], Rule] = {
    ops.Add: elementwise.add,
    ops.Mul: elementwise.mul,
    ops.Requantize: elementwise.requantize,
    ops.Prelu: elementwise.prelu,
    ops.Lookup: elementwise.lookup,
    ops.Quantize: elementwise.quantize,
    ops.Dequantize: elementwise.dequantize,
    ops.Softmax: elementwise.softmax,
    ops.MaxPool: lambda op, inputs, y: pool.window(op, inputs[0], y),
    ops.AvgPool: lambda op, inputs, y: pool.window(op, inputs[0], y),
    ops.Mean: lambda op, inputs, y: pool.mean(op, inputs[0], y),
    ops.Concat: move.concat,
    ops.Pad: move.pad,
    ops.Transpose: move.transpose,
    ops.Reshape: move.copy,
    ops.Float: fallback.fallback,
    floats.FloatConv2d: lambda op, inputs, y: float_conv.conv(op, inputs[0], y),
    floats.FloatLinear: lambda op, inputs, y: float_conv.linear(op, inputs[0], y),
    floats.FloatPair: float_values.pair,
    floats.FloatPool: float_values.pool,
    floats.FloatMean: float_values.mean,
    floats.FloatPad: move.float_pad,
    floats.FloatFunction: float_values.function,
    floats.FloatPrelu: float_values.prelu,
    floats.FloatSoftmax: float_values.softmax,
}


def kernel_for(
    op: ops.Operator, inputs: Sequence[IntegerTensor], y: IntegerTensor, isa: Sequence[str]
) -> CKernel:
    """The kernel of an operator on a core with these features ("dsp", "mve").

    Raises LoweringError naming an operator that has none, or whose sums could overflow.
    """
    if isinstance(op, ops.Linear):
        op, x, y = as_convolution(op, inputs[0], y, ops.Conv2d)
        return _conv(op, x, y, isa)
    if isinstance(op, ops.Conv2d):
        return _conv(op, inputs[0], y, isa)
    rule = _RULES.get(type(op))
    if rule is None:
        raise LoweringError(
            f"there is no kernel for {op.kind} on microcontrollers",
            where=op.where or op.name,
            hint="quantize it, or take it out of the network",
        )
    return rule(op, inputs, y)


def _conv(op: ops.Conv2d, x: IntegerTensor, y: IntegerTensor, isa: Sequence[str]) -> CKernel:
    if "dsp" not in isa:
        return plain.conv(op, x, y)
    if depthwise.is_depthwise(op):
        vectors = "mve" in isa and helium_depthwise.takes(op)
        return helium_depthwise.depthwise(op, x, y) if vectors else depthwise.depthwise(op, x, y)
    if "mve" in isa:
        return helium.conv(op, x, y)
    return conv.conv(op, x, y)
