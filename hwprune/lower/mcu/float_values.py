"""float32 operators on single values and over windows: sums, functions, pools, means, softmax."""

from __future__ import annotations

from math import prod

import numpy as np

from hwprune import float_graph as floats
from hwprune.lower.mcu import emit
from hwprune.lower.mcu.emit import (
    Buffer,
    CKernel,
    Expr,
    T,
    at,
    bind,
    build_function,
    call_float,
    f32,
    i32,
    loop,
    run,
    tirx,
)
from hwprune.lower.mcu.values import Tensors, arguments_of, each
from hwprune.quantize.graph import IntegerTensor

LOWEST = float(np.finfo(np.float32).min)
UNBOUNDED = 3.0e38  # from here on a bound stands for none (lower/epilogue.py)


def clamped(value: Expr, bounds: floats.Bounds) -> Expr:
    """The value within bounds; those of UNBOUNDED or more bound nothing."""
    low, high = bounds
    if low > -UNBOUNDED:
        value = tirx.max(value, f32(low))
    return tirx.min(value, f32(high)) if high < UNBOUNDED else value


def pair(op: floats.FloatPair, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """A sum or product; the second may be a gate of channels."""
    gate = prod(inputs[1].shape) != prod(inputs[0].shape)
    channels = inputs[0].shape[-1]

    def value(b: dict[str, Buffer], i: Expr) -> Expr:
        first, second = b["x0"][i], b["x1"][T.floormod(i, channels) if gate else i]
        return clamped(bind(first * second if op.function == "mul" else first + second), op.bounds)

    return each(f"mcu.float.{op.function}", inputs, y, value)


def function(op: floats.FloatFunction, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """An activation."""

    def value(b: dict[str, Buffer], i: Expr) -> Expr:
        x = b["x0"][i]
        if op.function == "clamp":
            return clamped(x, (op.numbers[0], op.numbers[1]))
        return call_float(f"float_{op.function}", x, *map(f32, op.numbers))

    return each(f"mcu.float.{op.function}", inputs, y, value)


def prelu(op: floats.FloatPrelu, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """A slope for every channel below zero."""
    slopes = op.slope.reshape(-1)

    def value(b: dict[str, Buffer], i: Expr) -> Expr:
        x = bind(b["x0"][i])
        return tirx.Select(x > f32(0.0), x, x * b["c0"][T.floormod(i, slopes.size)])

    return each("mcu.float.prelu", inputs, y, value, (slopes,))


def softmax(op: floats.FloatSoftmax, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """Softmax over the last axis."""
    length = y.shape[-1]

    def body(x0: Buffer, y: Buffer) -> None:
        with loop(rows) as row:
            run("float_softmax", at(y, row * length), at(x0, row * length), i32(length))

    rows = prod(y.shape) // length
    arguments = arguments_of(inputs, y)
    return CKernel("mcu.float.softmax", build_function(arguments, body), arguments)


def pool(op: floats.FloatPool, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """Maximum or mean over windows clipped to the image."""
    _, height, width, channels = inputs[0].shape
    _, out_height, out_width, _ = y.shape
    (kh, kw), (sh, sw), (top, left) = op.kernel, op.stride, op.padding[:2]

    def body(x0: Buffer, y: Buffer) -> None:
        with loop(out_height) as row, loop(out_width) as column:
            h, w = bind(row * sh - top), bind(column * sw - left)
            h_low, w_low = bind(tirx.max(i32(0), h)), bind(tirx.max(i32(0), w))
            rows = bind(tirx.min(i32(height), h + kh) - h_low)
            columns = bind(tirx.min(i32(width), w + kw) - w_low)
            count = i32(kh * kw) if op.count_padding else rows * columns
            with loop(channels) as channel:
                acc = emit.accumulators(1, "float32")
                T.buffer_store(acc, f32(LOWEST if op.maximum else 0.0), [0])
                with loop(rows) as i, loop(columns) as j:
                    pixel = (h_low + i) * width + w_low + j
                    value = bind(x0[pixel * channels + channel])
                    T.buffer_store(
                        acc, tirx.max(acc[0], value) if op.maximum else acc[0] + value, [0]
                    )
                made = acc[0] if op.maximum else bind(acc[0] / tirx.Cast("float32", count))
                place = (row * out_width + column) * channels + channel
                T.buffer_store(y, clamped(made, op.bounds), [place])

    arguments = arguments_of(inputs, y)
    rule = f"mcu.float.{'max' if op.maximum else 'avg'}_pool"
    return CKernel(rule, build_function(arguments, body), arguments)


def mean(op: floats.FloatMean, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """The mean of every channel: of rows first, so that long sums keep their digits."""
    _, height, width, channels = inputs[0].shape

    def body(x0: Buffer, y: Buffer) -> None:
        with loop(channels) as channel:
            acc = emit.accumulators(2, "float32")
            T.buffer_store(acc, f32(0.0), [0])
            with loop(height) as row:
                T.buffer_store(acc, f32(0.0), [1])
                with loop(width) as column:
                    pixel = row * width + column
                    T.buffer_store(acc, acc[1] + x0[pixel * channels + channel], [1])
                T.buffer_store(acc, acc[0] + acc[1], [0])
            made = bind(acc[0] / f32(float(height * width)))
            T.buffer_store(y, clamped(made, op.bounds), [channel])

    arguments = arguments_of(inputs, y)
    return CKernel("mcu.float.mean", build_function(arguments, body), arguments)
