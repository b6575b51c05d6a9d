"""int8 depthwise convolutions: vectors of channels, a tile of columns, taps unrolled where few."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from math import prod

import numpy as np

from hwprune.lower.cpu import tiles
from hwprune.lower.cpu.context import Context
from hwprune.lower.cpu.emit import split_threads
from hwprune.lower.int8 import emit
from hwprune.lower.int8.border import Plane, Source, source_of
from hwprune.lower.int8.emit import Buffer, Code, Expr, loop, unroll
from hwprune.lower.int8.layout import padded, spec_of
from hwprune.lower.int8.machine import Machine
from hwprune.lower.int8.scaling import Channels, Finish, filled, zero_point
from hwprune.quantize.graph import Conv2d, IntegerTensor

FEW = 25  # taps that are unrolled


def is_depthwise(op: Conv2d) -> bool:
    """One channel in and out of every group."""
    return op.weight.shape[3] == 1 and op.groups == op.weight.shape[0]


def depthwise(
    op: Conv2d, x: IntegerTensor, y: IntegerTensor, machine: Machine, context: Context
) -> Code:
    """A depthwise convolution of any kernel, stride, padding and dilation."""
    plan = Plan.of(op, x, y, machine, context)
    channels = Channels.of(op, x, Finish.of(op.clamp, y, machine), plan.pitch)
    constants = (plan.weights(op), plan.bias(op), *channels.arrays)

    def body(xs: list[Buffer], cs: list[Buffer], out: Buffer) -> None:
        source = source_of(
            xs[0], plan.plane, plan.zero_point, machine, context.threads, machine.stored
        )
        _Writer(plan, op, source, cs[0], cs[1], cs[2:], channels, out).emit()

    func = emit.build_function(machine, [spec_of(x, machine)], constants, spec_of(y, machine), body)
    return Code("int8.depthwise", f"{plan.columns} pixels x {plan.lanes} channels", func, constants)


@dataclass(frozen=True)
class Plan:
    """Tiles of `columns` pixels x `lanes` channels of a plane of `pitch` channels."""

    plane: Plane
    outputs: tuple[int, int]
    pitch: int
    lanes: int
    columns: int
    zero_point: int
    threads: int
    machine: Machine

    @staticmethod
    def of(
        op: Conv2d, x: IntegerTensor, y: IntegerTensor, machine: Machine, context: Context
    ) -> Plan:
        """That of an operator."""
        _, height, width, channels = x.shape
        pitch, outputs = padded(channels), (y.shape[1], y.shape[2])
        kernel = op.weight.shape[1:3]
        size = tuple(
            (out - 1) * s + (k - 1) * d + 1
            for out, s, k, d in zip(outputs, op.stride, kernel, op.dilation, strict=True)
        )
        plane = Plane(height, width, pitch, (op.padding[0], op.padding[1]), (size[0], size[1]))
        lanes = min(pitch, max(machine.lanes, 8))
        registers = -(-lanes // machine.lanes)  # of a tile's pixel
        free = context.registers - prod(kernel) * registers
        columns = max(min(free // (2 * registers), 8), 2)
        return Plan(
            plane, outputs, pitch, lanes, min(columns, outputs[1]), zero_point(x, machine),
            context.threads, machine,
        )  # fmt: skip

    def weights(self, op: Conv2d) -> np.ndarray:
        """int16, flat: (taps, channels)."""
        taps = op.weight.reshape(len(op.weight), -1).T  # (taps, channels)
        rows = [filled(row.astype(np.int16), self.pitch) for row in taps]
        return np.concatenate(rows)

    def bias(self, op: Conv2d) -> np.ndarray:
        """int32 with the share of the input's zero point in it."""
        flat = op.weight.reshape(len(op.weight), -1).astype(np.int64)
        whole = op.bias.astype(np.int64) - self.zero_point * flat.sum(1)
        return filled(whole.astype(np.int32), self.pitch)


@dataclass(frozen=True)
class _Writer:
    plan: Plan
    op: Conv2d
    source: Source
    weight: Buffer
    bias: Buffer
    scales: list[Buffer]
    channels: Channels
    y: Buffer

    def emit(self) -> None:
        plan = self.plan
        height, width = plan.outputs
        with split_threads(height, plan.threads) as (first, count), loop(count) as i:
            with loop(plan.pitch // plan.lanes) as block:
                for part in tiles.segments(width, plan.columns):
                    with loop(part.count) as tile:
                        column = part.start + tile * part.size
                        self._tile(first + i, column, block * plan.lanes, part.size)

    def _tile(self, row: Expr, column: Expr, channel: Expr, columns: int) -> None:
        plan, lanes = self.plan, self.plan.lanes
        acc = emit.local((columns * lanes,))
        bias = emit.load(self.bias, channel, lanes)
        with unroll(columns) as p:
            emit.store(acc, bias, p * lanes, lanes)
        _, kh, kw, _ = self.op.weight.shape
        over = unroll if kh * kw <= FEW else loop
        with ExitStack() as nest:
            dy, dx = nest.enter_context(over(kh)), nest.enter_context(over(kw))
            weight = emit.load(self.weight, (dy * kw + dx) * plan.pitch + channel, lanes)
            weight = emit.cast(weight, "int32", lanes)
            p = nest.enter_context(unroll(columns))
            y = row * self.op.stride[0] + dy * self.op.dilation[0]
            x = (column + p) * self.op.stride[1] + dx * self.op.dilation[1]
            value = emit.load(self.source.buffer, self.source.index(y, x) + channel, lanes)
            product = emit.cast(value, "int32", lanes) * weight
            emit.store(acc, emit.load(acc, p * lanes, lanes) + product, p * lanes, lanes)
        with unroll(columns) as p:
            at = (row * plan.outputs[1] + column + p) * plan.pitch + channel
            self._store(acc, p * lanes, channel, at)

    def _store(self, acc: Buffer, first: Expr, channel: Expr, at: Expr) -> None:
        """Requantize a pixel's channels in the machine's vectors."""
        width = min(self.plan.machine.lanes, self.plan.lanes)
        for part in range(0, self.plan.lanes, width):
            sums = emit.load(acc, first + part, width)
            value = self.channels.value(sums, self.scales, channel + part, width)
            emit.store(self.y, value, at + part, width)
