"""Operators that only move values: concatenation, padding, transposition, a copy."""

from __future__ import annotations

from math import prod

from hwprune.float_graph import FloatPad
from hwprune.lower.mcu.emit import (
    Buffer,
    CKernel,
    Expr,
    T,
    bind,
    build_function,
    f32,
    i8,
    loop,
    tirx,
)
from hwprune.lower.mcu.values import Tensors, arguments_of
from hwprune.quantize import graph as ops
from hwprune.quantize.graph import IntegerTensor


def concat(op: ops.Concat, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """Tensors side by side along an axis."""
    axis = op.axis % len(y.shape)
    outer, row = prod(y.shape[:axis]), prod(y.shape[axis:])
    sizes = [prod(t.shape[axis:]) for t in inputs]

    def body(**b: Buffer) -> None:
        with loop(outer) as i:
            for k, size in enumerate(sizes):
                with loop(size) as j:
                    place = i * row + sum(sizes[:k]) + j
                    T.buffer_store(b["y"], b[f"x{k}"][i * size + j], [place])

    arguments = arguments_of(inputs, y)
    return CKernel("mcu.concat", build_function(arguments, body), arguments)


def pad(op: ops.Pad, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """An int8 image with a border of one value."""
    return _bordered(op, inputs, y, i8(op.value))


def float_pad(op: FloatPad, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """A float32 image with zeros around it."""
    return _bordered(op, inputs, y, f32(0.0))


def _bordered(op: ops.Pad | FloatPad, inputs: Tensors, y: IntegerTensor, border: Expr) -> CKernel:
    _, height, width, channels = inputs[0].shape
    top, left = op.padding[:2]

    def body(x0: Buffer, y: Buffer) -> None:
        with loop(rows) as row, loop(columns) as column, loop(channels) as channel:
            h, w = bind(row - top), bind(column - left)
            place = (row * columns + column) * channels + channel
            with T.If(tirx.all(h >= 0, h < height, w >= 0, w < width)):
                with T.Then():
                    T.buffer_store(y, x0[(h * width + w) * channels + channel], [place])
                with T.Else():
                    T.buffer_store(y, border, [place])

    _, rows, columns, _ = y.shape
    arguments = arguments_of(inputs, y)
    return CKernel("mcu.pad", build_function(arguments, body), arguments)


def transpose(op: ops.Transpose, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """Axes in another order."""
    shape = inputs[0].shape
    strides = [prod(shape[axis + 1 :]) for axis in op.axes]
    sizes = y.shape

    def body(x0: Buffer, y: Buffer) -> None:
        def nest(axis: int, source: Expr, place: Expr) -> None:
            if axis == len(sizes):
                T.buffer_store(y, x0[source], [place])
                return
            with loop(sizes[axis]) as i:
                nest(axis + 1, source + i * strides[axis], place * sizes[axis] + i)

        nest(0, 0, 0)

    arguments = arguments_of(inputs, y)
    return CKernel("mcu.transpose", build_function(arguments, body), arguments)


def copy(op: ops.Operator, inputs: Tensors, y: IntegerTensor) -> CKernel:
    """The same elements at another place."""

    def body(x0: Buffer, y: Buffer) -> None:
        with loop(count) as i:
            T.buffer_store(y, x0[i], [i])

    count = prod(y.shape)
    arguments = arguments_of(inputs, y)
    return CKernel("mcu.copy", build_function(arguments, body), arguments)
