"""Operators on single values: sums, products, tables, rescaling, the way to and from float32."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from hwprune.lower.mcu.emit import (
    Buffer,
    CKernel,
    Expr,
    T,
    at,
    bind,
    build_function,
    call,
    i8,
    i32,
    loop,
    run,
    tirx,
)
from hwprune.lower.mcu.values import Tensors, Value, arguments_of, each
from hwprune.quantize import graph as ops
from hwprune.quantize.graph import INT8_MIN, IntegerTensor


def add(op: ops.Add, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """The sum of two tensors of one shape."""

    def value(b: dict[str, Buffer], i: Expr) -> Expr:
        total: Any = 0
        for k, tensor in enumerate(inputs):
            centred = i32(b[f"x{k}"][i]) - tensor.zero_point
            total = total + _reduce(centred * (1 << op.left_shift), op.multiplier[k], op.shift[k])
        return _reduce(bind(total), op.multiplier[2], op.shift[2])

    return each(f"mcu.{op.kind}", inputs, y, _scaled(op, y, value))


def mul(op: ops.Mul, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """The product of two tensors; the second may be a gate of channels."""
    gate = prod(inputs[1].shape) != prod(inputs[0].shape)
    channels = inputs[0].shape[-1]

    def value(b: dict[str, Buffer], i: Expr) -> Expr:
        j = T.floormod(i, channels) if gate else i
        product = (i32(b["x0"][i]) - inputs[0].zero_point) * (
            i32(b["x1"][j]) - inputs[1].zero_point
        )
        return call("requantize", product, i32(op.multiplier), i32(op.shift))

    return each(f"mcu.{op.kind}", inputs, y, _scaled(op, y, value))


def requantize(op: ops.Requantize, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """Another scale and zero point."""

    def value(b: dict[str, Buffer], i: Expr) -> Expr:
        centred = i32(b["x0"][i]) - inputs[0].zero_point
        return call("requantize", centred, i32(op.multiplier), i32(op.shift))

    return each(f"mcu.{op.kind}", inputs, y, _scaled(op, y, value))


def prelu(op: ops.Prelu, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """A slope for every channel below zero."""
    slopes = op.slope.reshape(-1)

    def value(b: dict[str, Buffer], i: Expr) -> Expr:
        d = bind(i32(b["x0"][i]) - inputs[0].zero_point)
        slope = i32(b["c0"][T.floormod(i, slopes.size)])
        above = call("requantize", d, i32(op.multiplier[0]), i32(op.shift[0]))
        below = call("requantize", d * slope, i32(op.multiplier[1]), i32(op.shift[1]))
        return tirx.Select(d >= 0, above, below)

    return each(f"mcu.{op.kind}", inputs, y, _scaled(op, y, value), (slopes,))


def lookup(op: ops.Lookup, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """Any function of one value, from its table."""

    def body(x0: Buffer, c0: Buffer, y: Buffer) -> None:
        with loop(count) as i:
            T.buffer_store(y, c0[i32(x0[i]) - INT8_MIN], [i])

    count = prod(y.shape)
    arguments = arguments_of(inputs, y, (op.table,))
    func = build_function(arguments, body)
    return CKernel("mcu.lookup", func, arguments, (op.table,), in_place=True)


def quantize(op: ops.Quantize, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """float32 to int8."""
    scale, zero_point = y.scale, y.zero_point

    def body(x0: Buffer, y: Buffer) -> None:
        with loop(count) as i:
            value = call("quantize", x0[i], tirx.const(scale, "float32"), i32(zero_point))
            T.buffer_store(y, i8(value), [i])

    count = prod(y.shape)
    arguments = arguments_of(inputs, y)
    return CKernel("mcu.quantize", build_function(arguments, body), arguments)


def dequantize(op: ops.Dequantize, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """int8 to float32."""
    x = inputs[0]

    def body(x0: Buffer, y: Buffer) -> None:
        with loop(count) as i:
            centred = tirx.Cast("float32", i32(x0[i]) - x.zero_point)
            T.buffer_store(y, centred * tirx.const(np.float32(x.scale).item(), "float32"), [i])

    count = prod(y.shape)
    arguments = arguments_of(inputs, y)
    return CKernel("mcu.dequantize", build_function(arguments, body), arguments)


def softmax(op: ops.Softmax, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """Softmax over the last axis."""
    length = y.shape[-1]

    def body(x0: Buffer, y: Buffer) -> None:
        with loop(rows) as row:
            numbers = map(i32, (length, op.multiplier, op.shift, op.diff_min))
            run("softmax", at(y, row * length), at(x0, row * length), *numbers)

    rows = prod(y.shape) // length
    arguments = arguments_of(inputs, y)
    return CKernel("mcu.softmax", build_function(arguments, body), arguments)


def _reduce(x: Expr, multiplier: int, shift: int) -> Expr:
    """requantize of |x| < 2^30."""
    if shift > 0:
        return call("requantize", x, i32(multiplier), i32(shift))
    return call("reduce", x, i32(multiplier), i32(-shift))


def _scaled(op: Any, y: IntegerTensor, value: Value) -> Value:
    """What `value` makes as an int8: y's zero point added, clamped."""
    return lambda b, i: i8(call("clamp", value(b, i) + y.zero_point, *map(i32, op.clamp)))
