"""Operators on single values: sums, products, tables, rescaling, slopes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from hwprune.lower.cpu.context import Context
from hwprune.lower.cpu.emit import split_threads
from hwprune.lower.int8 import emit
from hwprune.lower.int8.border import runs
from hwprune.lower.int8.emit import Buffer, Code, Expr, T, loop, tirx
from hwprune.lower.int8.layout import padded, rows, size, spec_of
from hwprune.lower.int8.machine import Machine
from hwprune.lower.int8.scaling import Finish, filled, read, scaled, zero_point
from hwprune.quantize import graph as ops
from hwprune.quantize.graph import INT8_MIN, IntegerTensor

Tensors = Sequence[IntegerTensor]
PIECE = 1024  # values that a thread takes at least
Value = Callable[[list[Buffer], list[Buffer], Expr, Expr, int], Expr]


def add(op: ops.Add, inputs: Tensors, y: IntegerTensor, machine: Machine, context: Context) -> Code:
    """The sum of two tensors of one shape."""

    def value(xs: list[Buffer], _: list[Buffer], i: Expr, __: Expr, lanes: int) -> Expr:
        terms = []
        for k, tensor in enumerate(inputs):
            centred = _centred(xs[k], i, tensor, machine, lanes)
            shifted = tirx.shift_left(centred, emit.splat(op.left_shift, lanes))
            terms.append(scaled(shifted, op.multiplier[k], op.shift[k], lanes))
        return scaled(terms[0] + terms[1], op.multiplier[2], op.shift[2], lanes)

    return _each(op, inputs, y, machine, context, value)


def mul(op: ops.Mul, inputs: Tensors, y: IntegerTensor, machine: Machine, context: Context) -> Code:
    """The product of two tensors; the second may be a gate of channels."""
    gate = prod(inputs[1].shape) != prod(inputs[0].shape)

    def value(xs: list[Buffer], _: list[Buffer], i: Expr, channel: Expr, lanes: int) -> Expr:
        first = _centred(xs[0], i, inputs[0], machine, lanes)
        second = _centred(xs[1], channel if gate else i, inputs[1], machine, lanes)
        return scaled(first * second, op.multiplier, op.shift, lanes)

    return _each(op, inputs, y, machine, context, value, by_channel=gate)


def requantize(
    op: ops.Requantize, inputs: Tensors, y: IntegerTensor, machine: Machine, context: Context
) -> Code:
    """Another scale and zero point."""

    def value(xs: list[Buffer], _: list[Buffer], i: Expr, __: Expr, lanes: int) -> Expr:
        centred = _centred(xs[0], i, inputs[0], machine, lanes)
        return scaled(centred, op.multiplier, op.shift, lanes)

    return _each(op, inputs, y, machine, context, value)


def prelu(
    op: ops.Prelu, inputs: Tensors, y: IntegerTensor, machine: Machine, context: Context
) -> Code:
    """A slope for every channel below zero."""
    slopes = filled(op.slope, padded(y.shape[-1]))

    def value(xs: list[Buffer], cs: list[Buffer], i: Expr, channel: Expr, lanes: int) -> Expr:
        d = _centred(xs[0], i, inputs[0], machine, lanes)
        above = scaled(d, op.multiplier[0], op.shift[0], lanes)
        below = scaled(d * read(cs[0], channel, lanes), op.multiplier[1], op.shift[1], lanes)
        return tirx.Select(d >= emit.splat(0, lanes), above, below)

    return _each(op, inputs, y, machine, context, value, (slopes,), by_channel=True)


def lookup(
    op: ops.Lookup, inputs: Tensors, y: IntegerTensor, machine: Machine, context: Context
) -> Code:
    """Any function of one value, from its table."""
    table = stored_table(op.table, machine)
    count = size(y)

    def body(xs: list[Buffer], cs: list[Buffer], out: Buffer) -> None:
        with split_threads(count, context.threads) as (first, some), loop(some) as i:
            place = tirx.Cast("int32", xs[0][first + i]) - (INT8_MIN + machine.offset)
            T.buffer_store(out, cs[0][place], [first + i])

    return _code(op, inputs, y, machine, (table,), body)


def stored_table(table: np.ndarray, machine: Machine) -> np.ndarray:
    """A table of 256 results as they are stored."""
    return (table.astype(np.int16) + machine.offset).astype(machine.stored)


def _centred(x: Buffer, i: Expr, tensor: IntegerTensor, machine: Machine, lanes: int) -> Expr:
    return read(x, i, lanes) - emit.splat(zero_point(tensor, machine), lanes)


def _each(
    op: Any,
    inputs: Tensors,
    y: IntegerTensor,
    machine: Machine,
    context: Context,
    value: Value,
    constants: tuple[np.ndarray, ...] = (),
    *,
    by_channel: bool = False,
) -> Code:
    """Every value from those at its place; `by_channel`: row by row, which says its channel."""
    finish = Finish.of(op.clamp, y, machine)
    pitch = padded(y.shape[-1])
    units, width = (rows(y), pitch) if by_channel else divided(size(y))

    def body(xs: list[Buffer], cs: list[Buffer], out: Buffer) -> None:
        with split_threads(units, context.threads) as (first, count), loop(count) as unit:
            for start, lanes, times in runs(width, machine.lanes):
                with loop(times) as k:
                    channel = start + k * lanes
                    i = (first + unit) * width + channel
                    made = finish(value(xs, cs, i, channel, lanes), lanes)
                    emit.store(out, made, i, lanes)

    return _code(op, inputs, y, machine, constants, body)


def divided(count: int) -> tuple[int, int]:
    """(units, values of each): what threads share, of one run of values."""
    if count % PIECE == 0:
        return count // PIECE, PIECE
    units = max((n for n in range(1, count // PIECE + 1) if count % (n * 16) == 0), default=1)
    return units, count // units


def _code(
    op: Any,
    inputs: Tensors,
    y: IntegerTensor,
    machine: Machine,
    constants: tuple[np.ndarray, ...],
    body: Callable[[list[Buffer], list[Buffer], Buffer], None],
) -> Code:
    specs = [spec_of(t, machine) for t in inputs]
    func = emit.build_function(machine, specs, constants, spec_of(y, machine), body)
    return Code(f"int8.{op.kind}", "element by element", func, constants)
