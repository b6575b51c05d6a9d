"""Operators that only move values: concatenation, padding, transposition, another shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from hwprune.lower.cpu.context import Context
from hwprune.lower.cpu.emit import split_index, split_threads
from hwprune.lower.int8 import emit
from hwprune.lower.int8.border import runs
from hwprune.lower.int8.emit import Buffer, Code, Expr, T, loop, tirx
from hwprune.lower.int8.layout import padded, rows, spec_of
from hwprune.lower.int8.machine import Machine
from hwprune.lower.int8.scaling import byte
from hwprune.quantize import graph as ops
from hwprune.quantize.graph import IntegerTensor

Tensors = Sequence[IntegerTensor]


def concat(
    op: ops.Concat, inputs: Tensors, y: IntegerTensor, machine: Machine, context: Context
) -> Code:
    """Tensors side by side along an axis."""
    axis = op.axis % len(y.shape)
    if axis == len(y.shape) - 1:
        body = _side_by_side(inputs, y, context)
    else:
        body = _stacked(axis, inputs, y, context)
    return _code(op, inputs, y, machine, body)


def _side_by_side(inputs: Tensors, y: IntegerTensor, context: Context) -> Callable[..., None]:
    """Rows of channels, one after the other."""
    pitch = padded(y.shape[-1])

    def body(xs: list[Buffer], _: list[Buffer], out: Buffer) -> None:
        with split_threads(rows(y), context.threads) as (first, count), loop(count) as i:
            row, start = first + i, 0
            for x, tensor in zip(xs, inputs, strict=True):
                width = tensor.shape[-1]
                _copy(out, row * pitch + start, x, row * padded(width), width)
                start += width

    return body


def _stacked(axis: int, inputs: Tensors, y: IntegerTensor, context: Context) -> Callable[..., None]:
    """Whole rows of channels, by another axis."""
    pitch, outer = padded(y.shape[-1]), prod(y.shape[:axis])
    heights = [prod(t.shape[axis:-1]) for t in inputs]

    def body(xs: list[Buffer], _: list[Buffer], out: Buffer) -> None:
        with split_threads(outer, context.threads) as (first, count), loop(count) as i:
            start = (first + i) * sum(heights)
            for k, (x, height) in enumerate(zip(xs, heights, strict=True)):
                place = (start + sum(heights[:k])) * pitch
                _copy(out, place, x, (first + i) * height * pitch, height * pitch)

    return body


def pad(op: ops.Pad, inputs: Tensors, y: IntegerTensor, machine: Machine, context: Context) -> Code:
    """An image with a border of one value."""
    _, height, width, channels = inputs[0].shape
    pitch, (top, left) = padded(channels), op.padding[:2]
    _, out_height, out_width, _ = y.shape

    def body(xs: list[Buffer], _: list[Buffer], out: Buffer) -> None:
        with split_threads(out_height, context.threads) as (first, count), loop(count) as i:
            with loop(out_width) as column:
                h, w = first + i - top, column - left
                place = ((first + i) * out_width + column) * pitch
                with T.If(tirx.all(h >= 0, h < height, w >= 0, w < width)):
                    with T.Then():
                        _copy(out, place, xs[0], (h * width + w) * pitch, pitch)
                    with T.Else():
                        for start, lanes, times in runs(pitch):
                            with loop(times) as k:
                                border = emit.splat(byte(op.value, machine), lanes)
                                emit.store(out, border, place + start + k * lanes, lanes)

    return _code(op, inputs, y, machine, body)


def transpose(
    op: ops.Transpose, inputs: Tensors, y: IntegerTensor, machine: Machine, context: Context
) -> Code:
    """Axes in another order."""
    source = inputs[0].shape

    def read(x: Buffer, index: list[Expr]) -> Expr:
        at: list[Expr] = [0] * len(source)
        for axis, i in zip(op.axes, index, strict=True):
            at[axis] = i
        return x[_place(source, at)]

    return _code(op, inputs, y, machine, _by_element(y, context, read))


def reshape(
    op: ops.Reshape, inputs: Tensors, y: IntegerTensor, machine: Machine, context: Context
) -> Code:
    """The same elements in the same order, in rows of another length."""
    source = inputs[0].shape

    def read(x: Buffer, index: list[Expr]) -> Expr:
        flat: Expr = 0
        for size, i in zip(y.shape, index, strict=True):
            flat = flat * size + i
        return x[flat // source[-1] * padded(source[-1]) + flat % source[-1]]

    return _code(op, inputs, y, machine, _by_element(y, context, read))


def _by_element(
    y: IntegerTensor, context: Context, read: Callable[[Buffer, list[Expr]], Expr]
) -> Callable[..., None]:
    """Every element of the result from one of the input."""
    outer = y.shape[:-1]

    def body(xs: list[Buffer], _: list[Buffer], out: Buffer) -> None:
        with split_threads(rows(y), context.threads) as (first, count), loop(count) as i:
            at = split_index(first + i, outer) if outer else []
            with T.serial(y.shape[-1]) as channel:
                place = (first + i) * padded(y.shape[-1]) + channel
                T.buffer_store(out, read(xs[0], [*at, channel]), [place])

    return body


def _place(shape: Sequence[int], index: Sequence[Expr]) -> Expr:
    """Where an element lies."""
    row: Expr = 0
    for size, i in zip(shape[:-1], index[:-1], strict=True):
        row = row * size + i
    return row * padded(shape[-1]) + index[-1]


def _copy(y: Buffer, first: Expr, x: Buffer, from_: Expr, count: int) -> None:
    for start, lanes, times in runs(count):
        with loop(times) as k:
            at = start + k * lanes
            emit.store(y, emit.load(x, from_ + at, lanes), first + at, lanes)


def _code(
    op: ops.Operator,
    inputs: Tensors,
    y: IntegerTensor,
    machine: Machine,
    body: Callable[..., None],
) -> Code:
    specs = [spec_of(t, machine) for t in inputs]
    func = emit.build_function(machine, specs, (), spec_of(y, machine), body)
    return Code(f"int8.{op.kind}", "moved", func)
