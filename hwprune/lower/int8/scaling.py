"""From int32 accumulators to stored values: requantization as every kernel ends with it.

In: multipliers and shifts of an operator. Out: expressions on vectors. What is clamped and added is
that of the values as they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprune.lower.int8 import emit
from hwprune.lower.int8.emit import Buffer, Expr, tirx
from hwprune.lower.int8.machine import Machine
from hwprune.quantize.graph import INT8_MAX, INT8_MIN, IntegerTensor

LIMIT = 1 << 31


@dataclass(frozen=True)
class Finish:
    """Adds the zero point, clamps, stores."""

    machine: Machine
    zero_point: int
    clamp: tuple[int, int]

    @staticmethod
    def of(clamp: tuple[int, int], y: IntegerTensor, machine: Machine) -> Finish:
        """That of an operator's result."""
        low, high = (bound + machine.offset for bound in clamp)
        return Finish(machine, zero_point(y, machine), (low, high))

    def __call__(self, scaled: Expr, lanes: int) -> Expr:
        """A vector as it is stored."""
        return self.clamped(scaled + emit.splat(self.zero_point, lanes), lanes)

    def clamped(self, value: Expr, lanes: int) -> Expr:
        """A vector, its zero point added, as it is stored."""
        low, high = (emit.splat(bound, lanes) for bound in self.clamp)
        return emit.cast(tirx.min(tirx.max(value, low), high), self.machine.stored, lanes)


def read(x: Buffer, first: Expr, lanes: int) -> Expr:
    """Stored values as int32."""
    return emit.cast(emit.load(x, first, lanes), "int32", lanes)


def zero_point(tensor: IntegerTensor, machine: Machine) -> int:
    """The stored value that stands for zero."""
    return tensor.zero_point + machine.offset


def scaled(value: Expr, multiplier: int, shift: int, lanes: int) -> Expr:
    """`requantize` of a vector by one multiplier; a shift to the left is one of 32 bits."""
    if shift > 0:
        value = tirx.shift_left(value, emit.splat(shift, lanes))
    right = emit.splat(max(-shift, 0), lanes)
    return emit.requantized(value, emit.splat(multiplier, lanes), right, lanes)


@dataclass(frozen=True, eq=False)
class Channels:
    """Multipliers and shifts of channels: arrays that a kernel takes, and how it uses them.

    With `start`, which has the rounding and the zero point in it, a sum is scaled by a product, two
    additions and a shift; without, for shifts to the left and sums near 2^31, as it is defined.
    """

    multiplier: np.ndarray
    right: np.ndarray
    left: np.ndarray
    start: np.ndarray | None
    finish: Finish

    @staticmethod
    def of(operator: Any, x: IntegerTensor, finish: Finish, count: int) -> Channels:
        """Those of a layer, filled up to `count`."""
        multiplier = filled(np.asarray(operator.multiplier, np.int64), count)
        shift = filled(np.asarray(operator.shift, np.int64), count)
        shift = np.where(multiplier == 0, -1, shift)
        right, left = np.maximum(-shift, 0), np.maximum(shift, 0)
        start = (2 * finish.zero_point + 1) << np.maximum(right - 1, 0)
        reach = (filled(largest_sums(operator, x), count) * multiplier >> 31) + 2
        near = (right < 1).any() or (reach + np.abs(start) >= LIMIT).any()
        return Channels(multiplier, right, left, None if near else start, finish)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What the kernel takes, int32."""
        third = self.left if self.start is None else self.start
        return tuple(a.astype(np.int32) for a in (self.multiplier, self.right, third))

    def value(self, acc: Expr, buffers: list[Buffer], channel: Expr, lanes: int) -> Expr:
        """Accumulators of channels as they are stored; `buffers` hold `arrays`."""
        multiplier, right, third = (emit.load(buffer, channel, lanes) for buffer in buffers)
        if self.start is None:
            wide = tirx.shift_left(acc, third)
            return self.finish(emit.requantized(wide, multiplier, right, lanes), lanes)
        value = emit.call(f"scale_{lanes}", lanes, acc, multiplier, third, right)
        return self.finish.clamped(value, lanes)


def largest_sums(operator: Any, x: IntegerTensor) -> np.ndarray:
    """The largest magnitude of every channel's accumulator, int64 (O,), over all inputs."""
    flat = np.abs(operator.weight.reshape(len(operator.weight), -1).astype(np.int64))
    furthest = max(abs(bound - x.zero_point) for bound in (INT8_MIN, INT8_MAX))
    total: np.ndarray = np.abs(operator.bias.astype(np.int64)) + furthest * flat.sum(1)
    return total


def filled(array: np.ndarray, count: int) -> np.ndarray:
    """A flat array with zeros up to `count`."""
    return np.pad(array.reshape(-1), (0, count - array.size))


def byte(value: int, machine: Machine) -> Expr:
    """One int8 as it is stored."""
    return emit.const(value + machine.offset, machine.stored)
