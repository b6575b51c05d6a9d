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
from hwprune.quantize.graph import IntegerTensor


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
        return Finish(machine, y.zero_point + machine.offset, (low, high))

    def __call__(self, scaled: Expr, lanes: int) -> Expr:
        """A vector as it is stored."""
        value = scaled + emit.splat(self.zero_point, lanes)
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
    """Multipliers and shifts of channels: arrays that a kernel takes, and how it uses them."""

    multiplier: np.ndarray
    right: np.ndarray
    left: np.ndarray

    @staticmethod
    def of(operator: Any, count: int) -> Channels:
        """Those of an operator, filled up to `count`."""
        shift = np.asarray(operator.shift, np.int32)
        arrays = operator.multiplier, np.maximum(-shift, 0), np.maximum(shift, 0)
        return Channels(*(filled(np.asarray(a, np.int32), count) for a in arrays))

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What the kernel takes: shifts to the left only where there are any."""
        few = self.multiplier, self.right
        return (*few, self.left) if self.left.any() else few

    def value(self, acc: Expr, buffers: list[Buffer], channel: Expr, lanes: int) -> Expr:
        """Accumulators of channels scaled; `buffers` hold `arrays`."""
        vectors = [emit.load(buffer, channel, lanes) for buffer in buffers]
        if len(vectors) > 2:
            acc = tirx.shift_left(acc, vectors[2])
        return emit.requantized(acc, vectors[0], vectors[1], lanes)


def filled(array: np.ndarray, count: int) -> np.ndarray:
    """A flat array with zeros up to `count`."""
    return np.pad(array.reshape(-1), (0, count - array.size))


def byte(value: int, machine: Machine) -> Expr:
    """One int8 as it is stored."""
    return emit.const(value + machine.offset, machine.stored)
