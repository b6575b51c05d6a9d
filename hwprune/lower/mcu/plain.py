"""int8 convolutions and linear layers on cores without dual multiply-accumulate: plain loops.

Inputs are read where they lie; taps outside the image are skipped.
"""

from __future__ import annotations

from math import prod

import numpy as np

from hwprune.lower.mcu import emit
from hwprune.lower.mcu.emit import (
    Argument,
    Buffer,
    CKernel,
    Expr,
    T,
    bind,
    build_function,
    constant,
    i32,
    loop,
    tirx,
)
from hwprune.lower.mcu.scaling import folded_bias, scaling_of
from hwprune.quantize.graph import Conv2d, IntegerTensor


def conv(op: Conv2d, x: IntegerTensor, y: IntegerTensor) -> CKernel:
    """A convolution of any kind, depthwise too."""
    outputs, kh, kw, depth = op.weight.shape
    padded = any(op.padding)
    bias, bound = folded_bias(op, op.weight, x.zero_point)
    if padded:
        bias, bound = op.bias, max(bound, int(np.abs(op.bias.astype(np.int64)).max()) + bound)
    scaling = scaling_of(op, y.zero_point, bound)
    arguments = [
        Argument("x", "int8", prod(x.shape)),
        constant("cw", op.weight),
        constant("cb", bias),
        *scaling.arguments,
        Argument("y", "int8", prod(y.shape), const=False),
    ]
    _, height, width, channels = x.shape
    per_group = outputs // op.groups

    def body(**b: Buffer) -> None:
        def tap(acc: Buffer, channel: Expr, i: Expr, j: Expr, pixel: Expr) -> None:
            first = bind(pixel + T.floordiv(channel, per_group) * depth)
            weights = bind(((channel * kh + i) * kw + j) * depth)
            with loop(depth) as k:
                value = i32(b["x"][first + k])
                if padded:
                    value = value - x.zero_point
                product = value * i32(b["cw"][weights + k])
                T.buffer_store(acc, acc[0] + product, [0])

        with loop(y.shape[1]) as row, loop(y.shape[2]) as column, loop(outputs) as channel:
            acc = emit.accumulators(1)
            T.buffer_store(acc, b["cb"][channel], [0])
            with loop(kh) as i:
                h = bind(row * op.stride[0] + i * op.dilation[0] - op.padding[0])
                with T.If(tirx.all(h >= 0, h < height)), T.Then(), loop(kw) as j:
                    w = bind(column * op.stride[1] + j * op.dilation[1] - op.padding[1])
                    with T.If(tirx.all(w >= 0, w < width)), T.Then():
                        tap(acc, channel, i, j, bind((h * width + w) * channels))
            value = scaling.value(acc[0], scaling.channel(b, channel))
            place = (row * y.shape[2] + column) * outputs + channel
            T.buffer_store(b["y"], value, [place])

    return CKernel(
        rule="mcu.conv.plain",
        func=build_function(arguments, body),
        arguments=tuple(arguments),
        constants=(op.weight.reshape(-1), bias, *scaling.constants.values()),
        macs=prod(y.shape[1:3]) * op.weight.size,
        weight_reads=prod(y.shape[1:3]) * op.weight.size,
    )
