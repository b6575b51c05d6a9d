"""Pooling of int8 images: windows clipped to the image, and means of whole planes."""

from __future__ import annotations

from hwprune.lower.mcu import emit
from hwprune.lower.mcu.emit import (
    Buffer,
    CKernel,
    T,
    bind,
    build_function,
    call,
    i8,
    i32,
    loop,
    tirx,
)
from hwprune.lower.mcu.values import arguments_of
from hwprune.quantize.graph import INT8_MIN, AvgPool, IntegerTensor, MaxPool, Mean


def window(op: MaxPool | AvgPool, x: IntegerTensor, y: IntegerTensor) -> CKernel:
    """Maximum or mean over windows."""
    _, height, width, channels = x.shape
    maximum = isinstance(op, MaxPool)
    (kh, kw), (sh, sw), (top, left) = op.kernel, op.stride, op.padding[:2]
    arguments = arguments_of((x,), y, names=("x",))

    def body(x: Buffer, y: Buffer) -> None:
        with loop(out_height) as row, loop(out_width) as column:
            h, w = bind(row * sh - top), bind(column * sw - left)
            h_low, w_low = bind(tirx.max(i32(0), h)), bind(tirx.max(i32(0), w))
            rows = bind(tirx.min(i32(height), h + kh) - h_low)
            columns = bind(tirx.min(i32(width), w + kw) - w_low)
            with loop(channels) as channel:
                acc = emit.accumulators(1)
                T.buffer_store(acc, i32(INT8_MIN if maximum else 0), [0])
                with loop(rows) as i, loop(columns) as j:
                    pixel = (h_low + i) * width + w_low + j
                    value = bind(i32(x[pixel * channels + channel]))
                    best = tirx.max(acc[0], value) if maximum else acc[0] + value
                    T.buffer_store(acc, best, [0])
                result = acc[0] if maximum else call("mean", acc[0], rows * columns)
                clamped = i8(call("clamp", result, *map(i32, op.clamp)))
                T.buffer_store(y, clamped, [(row * out_width + column) * channels + channel])

    _, out_height, out_width, _ = y.shape
    return CKernel(f"mcu.{op.kind}", build_function(arguments, body), arguments)


def mean(op: Mean, x: IntegerTensor, y: IntegerTensor) -> CKernel:
    """The mean of every channel, rescaled."""
    _, height, width, channels = x.shape
    arguments = arguments_of((x,), y, names=("x",))
    start, zero_point = -height * width * x.zero_point, y.zero_point

    def body(x: Buffer, y: Buffer) -> None:
        with loop(channels) as channel:
            acc = emit.accumulators(1)
            T.buffer_store(acc, i32(start), [0])
            with loop(height * width) as pixel:
                T.buffer_store(acc, acc[0] + i32(x[pixel * channels + channel]), [0])
            scaled = call("requantize", acc[0], i32(op.multiplier), i32(op.shift)) + zero_point
            T.buffer_store(y, i8(call("clamp", scaled, *map(i32, op.clamp))), [channel])

    return CKernel("mcu.mean", build_function(arguments, body), arguments)
