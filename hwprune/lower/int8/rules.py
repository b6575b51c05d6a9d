"""Operator -> kernel: the schedule rule of every operator of an `IntegerGraph` on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hwprune.errors import LoweringError
from hwprune.lower.cpu.context import Context
from hwprune.lower.int8 import conv, depthwise, elementwise, ends, linear, move, pool, softmax
from hwprune.lower.int8.emit import Code
from hwprune.lower.int8.machine import Machine
from hwprune.quantize import graph as ops
from hwprune.quantize.graph import IntegerTensor

Rule = Callable[[Any, Sequence[IntegerTensor], IntegerTensor, Machine, Context], Code]


def _of_one(rule: Callable[[Any, IntegerTensor, IntegerTensor, Machine, Context], Code]) -> Rule:
    """A rule of an operator that reads one tensor."""
    return lambda op, inputs, *rest: rule(op, inputs[0], *rest)


def _conv(
    op: ops.Conv2d, x: IntegerTensor, y: IntegerTensor, machine: Machine, context: Context
) -> Code:
    rule = depthwise.depthwise if depthwise.is_depthwise(op) else conv.conv
    return rule(op, x, y, machine, context)


_RULES: dict[type[ops.Operator], Rule] = {
    ops.Conv2d: _of_one(_conv),
    ops.Linear: _of_one(linear.linear),
    ops.Add: elementwise.add,
    ops.Mul: elementwise.mul,
    ops.Requantize: elementwise.requantize,
    ops.Prelu: elementwise.prelu,
    ops.Lookup: elementwise.lookup,
    ops.MaxPool: _of_one(pool.window),
    ops.AvgPool: _of_one(pool.window),
    ops.Mean: _of_one(pool.mean),
    ops.Concat: move.concat,
    ops.Pad: move.pad,
    ops.Transpose: move.transpose,
    ops.Reshape: move.reshape,
    ops.Softmax: softmax.softmax,
    ops.Quantize: ends.quantize,
    ops.Dequantize: ends.dequantize,
    ends.Enter: ends.quantize,
    ends.Leave: ends.dequantize,
}


def code_for(
    op: ops.Operator,
    inputs: Sequence[IntegerTensor],
    output: IntegerTensor,
    machine: Machine,
    context: Context,
) -> Code:
    """The kernel of an operator. Raises LoweringError naming one that has none."""
    rule = _RULES.get(type(op))
    if rule is None:
        raise LoweringError(
            f"there is no int8 kernel for {op.kind} on CPUs",
            where=op.where or op.name,
            hint="compile the network in float32, or take it out",
        )
    return rule(op, inputs, output, machine, context)
