"""The ends of a network: float32 as torch has it in and out, integers between.

`with_float_ends` adds an operator for every input and output of a graph; what they compute is
`Quantized.integers` and `Quantized.real`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hwprune.lower.cpu.context import Context
from hwprune.lower.cpu.emit import split_index, split_threads
from hwprune.lower.int8 import emit
from hwprune.lower.int8.border import runs
from hwprune.lower.int8.emit import Buffer, Code, Expr, T, loop, splat, tirx
from hwprune.lower.int8.layout import padded, rows, spec_of
from hwprune.lower.int8.machine import Machine
from hwprune.lower.int8.scaling import zero_point
from hwprune.quantize.graph import (
    FLOAT32,
    INT8_MAX,
    INT8_MIN,
    Dequantize,
    IntegerGraph,
    IntegerTensor,
    Quantize,
)

Body = Callable[[list[Buffer], list[Buffer], Buffer], None]
MANY = 1024.0  # more steps than any zero point reaches
WORD = 4


@dataclass(frozen=True, eq=False)
class Enter(Quantize):
    """Quantize; images come as (N, C, H, W)."""

    kind = "enter"


@dataclass(frozen=True, eq=False)
class Leave(Dequantize):
    """Dequantize; images go as (N, C, H, W)."""

    kind = "leave"


def with_float_ends(graph: IntegerGraph) -> IntegerGraph:
    """The graph with float32 inputs and outputs."""
    tensors, first, last = list(graph.tensors), [], []
    inputs, outputs = [], []
    for name in graph.inputs:
        made = _float(graph.by_name[name], f"{name}_float32")
        inputs.append(made.name)
        if graph.by_name[name].dtype == FLOAT32:
            inputs[-1] = name
            continue
        tensors.append(made)
        first.append(Enter(f"{name}_enter", (made.name,), name, ""))
    for i, name in enumerate(graph.outputs):
        if graph.by_name[name].dtype == FLOAT32:
            outputs.append(name)
            continue
        made = _float(graph.by_name[name], f"{name}_float32_{i}")
        tensors.append(made)
        outputs.append(made.name)
        last.append(Leave(f"{name}_leave_{i}", (name,), made.name, ""))
    operators = (*first, *graph.operators, *last)
    return replace(
        graph, tensors=tuple(tensors), operators=operators, inputs=tuple(inputs),
        outputs=tuple(outputs),
    )  # fmt: skip


def _float(tensor: IntegerTensor, name: str) -> IntegerTensor:
    shape = tensor.shape
    if len(shape) == 4:
        shape = (shape[0], shape[3], shape[1], shape[2])
    return IntegerTensor(name, shape, FLOAT32)


def quantize(
    op: Quantize, inputs: Sequence[IntegerTensor], y: IntegerTensor, machine: Machine,
    context: Context,
) -> Code:  # fmt: skip
    """float32 to int8, in the same order or (`Enter`) with channels last."""
    image = isinstance(op, Enter) and len(y.shape) == 4
    if image and padded(y.shape[3]) == WORD:
        body = _words(y, machine, context)
    else:
        body = _by_value(y, image, machine, context)
    specs = [spec_of(t, machine) for t in inputs]
    func = emit.build_function(machine, specs, (), spec_of(y, machine), body)
    return Code(f"int8.{op.kind}", "value by value", func)


def dequantize(
    op: Dequantize, inputs: Sequence[IntegerTensor], y: IntegerTensor, machine: Machine,
    context: Context,
) -> Code:  # fmt: skip
    """int8 to float32, in the same order or (`Leave`) with channels first."""
    x = inputs[0]
    image = isinstance(op, Leave) and len(x.shape) == 4
    zero = zero_point(x, machine)

    def body(xs: list[Buffer], _: list[Buffer], out: Buffer) -> None:
        with split_threads(rows(x), context.threads) as (first, count), loop(count) as i:
            at = split_index(first + i, x.shape[:-1]) if len(x.shape) > 1 else []
            with T.serial(x.shape[-1]) as channel:
                value = xs[0][(first + i) * padded(x.shape[-1]) + channel]
                centred = tirx.Cast("float32", tirx.Cast("int32", value) - zero)
                real = centred * emit.const(x.scale, "float32")
                T.buffer_store(out, real, _index(at, channel, image))

    func = emit.build_function(machine, [spec_of(x, machine)], (), spec_of(y, machine), body)
    return Code(f"int8.{op.kind}", "value by value", func)


def _index(row: list[Expr], channel: Expr, image: bool) -> list[Expr]:
    """The index of an element in the float tensor."""
    return [row[0], channel, *row[1:]] if image else [*row, channel]


def _by_value(y: IntegerTensor, image: bool, machine: Machine, context: Context) -> Body:
    def body(xs: list[Buffer], _: list[Buffer], out: Buffer) -> None:
        with split_threads(rows(y), context.threads) as (first, count), loop(count) as i:
            at = split_index(first + i, y.shape[:-1]) if len(y.shape) > 1 else []
            with T.serial(y.shape[-1]) as channel:
                place = (first + i) * padded(y.shape[-1]) + channel
                value = _quantized(xs[0][tuple(_index(at, channel, image))], y, machine, 1)
                T.buffer_store(out, tirx.Cast(machine.stored, value), [place])

    return body


def _words(y: IntegerTensor, machine: Machine, context: Context) -> Body:
    """Images of up to four channels: the bytes of a pixel put together as a word."""
    _, height, width, channels = y.shape

    def body(xs: list[Buffer], _: list[Buffer], out: Buffer) -> None:
        with split_threads(height, context.threads) as (first, count), loop(count) as i:
            row = first + i
            for start, lanes, times in runs(width, machine.lanes):
                with loop(times) as k:
                    column = start + k * lanes
                    word: Expr = splat(0, lanes)
                    for c in range(channels):
                        at = emit.vector_index(column, lanes)
                        value = _quantized(xs[0][0, c, row, at], y, machine, lanes)
                        byte = tirx.bitwise_and(value, splat(255, lanes))
                        word = tirx.bitwise_or(word, tirx.shift_left(byte, splat(8 * c, lanes)))
                    bytes_ = T.reinterpret(f"{machine.stored}x{WORD * lanes}", word)
                    place = (row * width + column) * WORD
                    emit.store(out, bytes_, place, WORD * lanes)

    return body


def _quantized(x: Expr, y: IntegerTensor, machine: Machine, lanes: int) -> Expr:
    """round(x / scale) + zero point, halves away from zero, as it is stored, in int32."""
    zero = splat(0.0, lanes, FLOAT32)
    ratio = x / splat(y.scale, lanes, FLOAT32)
    size = tirx.min(tirx.max(ratio, zero - ratio), splat(MANY, lanes, FLOAT32))
    floor = emit.cast(size, "int32", lanes)
    up = (size - emit.cast(floor, FLOAT32, lanes)) >= splat(0.5, lanes, FLOAT32)
    rounded = floor + tirx.Select(up, splat(1, lanes), splat(0, lanes))
    signed = tirx.Select(ratio < zero, splat(0, lanes) - rounded, rounded)
    low, high = (splat(bound + machine.offset, lanes) for bound in (INT8_MIN, INT8_MAX))
    return tirx.min(tirx.max(signed + splat(zero_point(y, machine), lanes), low), high)
