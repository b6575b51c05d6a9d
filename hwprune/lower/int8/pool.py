"""Pooling of int8 images: maxima and means of windows, means of whole planes."""

from __future__ import annotations

from collections.abc import Callable

from hwprune.lower.cpu.context import Context
from hwprune.lower.cpu.emit import split_threads
from hwprune.lower.int8 import emit
from hwprune.lower.int8.border import runs
from hwprune.lower.int8.emit import Buffer, Code, Expr, T, loop, tirx
from hwprune.lower.int8.layout import padded, rows, spec_of
from hwprune.lower.int8.machine import Machine
from hwprune.lower.int8.scaling import Finish, read, scaled, zero_point
from hwprune.quantize.graph import INT8_MIN, AvgPool, IntegerTensor, MaxPool, Mean


def window(
    op: MaxPool | AvgPool, x: IntegerTensor, y: IntegerTensor, machine: Machine, context: Context
) -> Code:
    """Maximum or mean over the positions of a window that lie inside the image."""
    _, height, width, channels = x.shape
    _, out_height, out_width, _ = y.shape
    pitch = padded(channels)
    (kh, kw), (sh, sw), (top, left) = op.kernel, op.stride, op.padding[:2]

    def body(xs: list[Buffer], _: list[Buffer], out: Buffer) -> None:
        with split_threads(out_height, context.threads) as (first, count):
            with loop(count) as r, loop(out_width) as column:
                row = first + r
                low = tirx.max(row * sh - top, 0), tirx.max(column * sw - left, 0)
                high = (
                    tirx.min(row * sh - top + kh, height),
                    tirx.min(column * sw - left + kw, width),
                )
                place = (row * out_width + column) * pitch
                for start, lanes, times in runs(pitch):
                    with loop(times) as k:
                        channel = start + k * lanes
                        value = _over(op, xs[0], low, high, width, pitch, channel, machine, lanes)
                        emit.store(out, value, place + channel, lanes)

    return _code(op, x, y, machine, body)


def _over(
    op: MaxPool | AvgPool,
    x: Buffer,
    low: tuple[Expr, Expr],
    high: tuple[Expr, Expr],
    width: int,
    pitch: int,
    channel: Expr,
    machine: Machine,
    lanes: int,
) -> Expr:
    """The result of some channels of a window."""
    maximum = isinstance(op, MaxPool)
    dtype = machine.stored if maximum else "int32"
    start = INT8_MIN + machine.offset if maximum else 0
    acc = emit.local((lanes,), dtype)
    emit.store(acc, emit.splat(start, lanes, dtype), 0, lanes)
    rows_, columns = high[0] - low[0], high[1] - low[1]
    with T.serial(rows_) as i, T.serial(columns) as j:
        place = ((low[0] + i) * width + low[1] + j) * pitch + channel
        before = emit.load(acc, 0, lanes)
        if maximum:
            emit.store(acc, tirx.max(before, emit.load(x, place, lanes)), 0, lanes)
        else:
            value = read(x, place, lanes) - emit.splat(machine.offset, lanes)
            emit.store(acc, before + value, 0, lanes)
    value = emit.load(acc, 0, lanes)
    if not maximum:
        value = _quotient(value, emit.splat(rows_ * columns, lanes), lanes)
        value = value + emit.splat(machine.offset, lanes)
    bounds = [emit.splat(bound + machine.offset, lanes, dtype) for bound in op.clamp]
    clamped = tirx.min(tirx.max(value, bounds[0]), bounds[1])
    return clamped if maximum else emit.cast(clamped, machine.stored, lanes)


def _quotient(total: Expr, count: Expr, lanes: int) -> Expr:
    """total / count, halves away from zero."""
    zero = emit.splat(0, lanes)
    half = tirx.shift_right(count, emit.splat(1, lanes))
    negative = total < zero
    size = tirx.truncdiv(tirx.Select(negative, zero - total, total) + half, count)
    return tirx.Select(negative, zero - size, size)


def mean(op: Mean, x: IntegerTensor, y: IntegerTensor, machine: Machine, context: Context) -> Code:
    """The mean of every channel of an image, rescaled."""
    pixels, pitch = rows(x), padded(x.shape[3])
    start = -pixels * zero_point(x, machine)
    finish = Finish.of(op.clamp, y, machine)

    def body(xs: list[Buffer], _: list[Buffer], out: Buffer) -> None:
        for begin, lanes, times in runs(pitch, machine.lanes):
            with loop(times) as k:
                channel = begin + k * lanes
                acc = emit.local((lanes,))
                emit.store(acc, emit.splat(start, lanes), 0, lanes)
                with loop(pixels) as p:
                    value = emit.load(acc, 0, lanes) + read(xs[0], p * pitch + channel, lanes)
                    emit.store(acc, value, 0, lanes)
                total = scaled(emit.load(acc, 0, lanes), op.multiplier, op.shift, lanes)
                emit.store(out, finish(total, lanes), channel, lanes)

    return _code(op, x, y, machine, body)


def _code(
    op: MaxPool | AvgPool | Mean,
    x: IntegerTensor,
    y: IntegerTensor,
    machine: Machine,
    body: Callable[..., None],
) -> Code:
    specs = [spec_of(x, machine)]
    func = emit.build_function(machine, specs, (), spec_of(y, machine), body)
    return Code(f"int8.{op.kind}", "vectors of channels", func)
