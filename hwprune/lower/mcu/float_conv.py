"""float32 convolutions and linear layers: plain loops over four output channels at a time.

Weights lie in the order in which they are read. Taps outside the image are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from hwprune.float_graph import FloatConv2d, FloatLinear
from hwprune.lower.linear_as_conv import as_convolution
from hwprune.lower.mcu import emit
from hwprune.lower.mcu.emit import (
    Argument,
    Buffer,
    CKernel,
    Expr,
    T,
    bind,
    build_function,
    call_float,
    constant,
    loop,
    tirx,
)
from hwprune.lower.mcu.float_values import clamped
from hwprune.lower.mcu.window import Shape
from hwprune.quantize.graph import IntegerTensor

TILE = 4  # output channels at a time


def linear(op: FloatLinear, x: IntegerTensor, y: IntegerTensor) -> CKernel:
    """A linear layer as the 1x1 convolution of its rows that it is."""
    return conv(*as_convolution(op, x, y, FloatConv2d))


def conv(op: FloatConv2d, x: IntegerTensor, y: IntegerTensor) -> CKernel:
    """A convolution of any stride, padding, dilation and number of groups."""
    shape = Shape.of(op, x, y)
    depthwise = shape.depth == shape.outputs == 1
    if depthwise:  # one channel in and out, of all groups side by side
        shape = replace(shape, outputs=shape.groups, groups=1)
    weights = _packed(op.weight, shape)
    arguments = [
        Argument("x", "float32", prod(x.shape)),
        constant("cw", weights),
        constant("cb", op.bias),
        Argument("y", "float32", prod(y.shape), const=False),
    ]

    def body(**buffers: Buffer) -> None:
        _Body(op, shape, depthwise, buffers).emit()

    return CKernel(
        rule="mcu.float.depthwise" if depthwise else "mcu.float.conv",
        func=build_function(arguments, body),
        arguments=tuple(arguments),
        constants=(weights, op.bias),
        macs=shape.positions * op.weight.size,
        weight_reads=shape.positions * op.weight.nbytes,
    )


def _packed(weight: np.ndarray, shape: Shape) -> np.ndarray:
    """(group, block of channels, tap, input, channel of the block), the last block narrower."""
    taps = prod(shape.kernel)
    flat = weight.reshape(shape.groups, shape.outputs, taps, shape.depth)
    blocks = [
        np.ascontiguousarray(group[first : first + TILE].transpose(1, 2, 0)).reshape(-1)
        for group in flat
        for first in range(0, shape.outputs, TILE)
    ]
    return np.concatenate(blocks)


@dataclass(frozen=True)
class _Body:
    op: FloatConv2d
    shape: Shape
    depthwise: bool
    buffers: dict[str, Buffer]

    def emit(self) -> None:
        shape = self.shape
        blocks, rest = divmod(shape.outputs, TILE)
        with loop(shape.positions // shape.out_width) as row, loop(shape.out_width) as column:
            top = bind(row * shape.stride[0] - shape.padding[0])
            left = bind(column * shape.stride[1] - shape.padding[1])
            place = bind((row * shape.out_width + column) * (shape.groups * shape.outputs))
            with loop(shape.groups) as group:
                if blocks:
                    with loop(blocks) as block:
                        self._block(top, left, place, group, block, TILE)
                if rest:
                    self._block(top, left, place, group, blocks, rest)

    def _block(
        self, top: Expr, left: Expr, place: Expr, group: Expr, block: Expr, count: int
    ) -> None:
        """`count` channels of one position."""
        shape, b = self.shape, self.buffers
        (kh, kw), (dh, dw) = shape.kernel, shape.dilation
        channel = bind(group * shape.outputs + block * TILE)
        weights = bind(channel * (kh * kw * shape.depth))
        acc = emit.accumulators(count, "float32")
        for c in range(count):
            T.buffer_store(acc, b["cb"][channel + c], [c])
        with loop(kh) as i:
            h = bind(top + i * dh)
            with T.If(tirx.all(h >= 0, h < shape.height)), T.Then(), loop(kw) as j:
                w = bind(left + j * dw)
                with T.If(tirx.all(w >= 0, w < shape.width)), T.Then():
                    pixel = h * shape.width + w
                    tap = bind(weights + (i * kw + j) * (shape.depth * count))
                    self._tap(acc, pixel, tap, channel, group, count)
        for c in range(count):
            T.buffer_store(b["y"], clamped(acc[c], self.op.bounds), [place + channel + c])

    def _tap(
        self, acc: Buffer, pixel: Expr, tap: Expr, channel: Expr, group: Expr, count: int
    ) -> None:
        shape, x, weights = self.shape, self.buffers["x"], self.buffers["cw"]
        if self.depthwise:
            first = bind(pixel * shape.outputs + channel)
            for c in range(count):
                value = call_float("fma", x[first + c], weights[tap + c], acc[c])
                T.buffer_store(acc, value, [c])
            return
        first = bind((pixel * shape.groups + group) * shape.depth)
        with loop(shape.depth) as k:
            value = bind(x[first + k])
            for c in range(count):
                weight = weights[tap + k * count + c]
                T.buffer_store(acc, call_float("fma", value, weight, acc[c]), [c])
