"""From int32 accumulators to int8: requantization as the kernels carry it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprune.errors import LoweringError
from hwprune.lower.mcu.emit import Argument, Buffer, Expr, T, bind, call, constant, i8, i32

LEAST, MOST = 1, 22  # shifts to the right that one rounded shift with the zero point in it can do
LIMIT = 1 << 30


@dataclass(frozen=True, eq=False)
class Scaling:
    """Requantization of channels: constants by argument name, and how they are used.

    `fast` is one multiplication and one rounded shift; otherwise any shift is done.
    """

    multiplier: np.ndarray
    shift: np.ndarray
    zero_point: int
    clamp: tuple[int, int]
    fast: bool

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """The arrays, by the names that `value` reads them under."""
        shift = -self.shift if self.fast else self.shift
        return {"cm": self.multiplier.astype(np.int32), "cs": shift.astype(np.int8)}

    @property
    def arguments(self) -> list[Argument]:
        """The arguments for these constants."""
        return [constant(name, array) for name, array in self.constants.items()]

    def channel(self, buffers: dict[str, Buffer], channel: Expr) -> tuple[Expr, ...]:
        """C variables with the constants of a channel."""
        multiplier = bind(buffers["cm"][channel])
        shift = bind(i32(buffers["cs"][channel]))
        if not self.fast:
            return multiplier, shift
        start = bind(i32(2 * self.zero_point + 1) * T.shift_left(i32(1), shift - 1))
        return multiplier, start, shift

    def value(self, acc: Expr, channel: tuple[Expr, ...], twice: bool = False) -> Expr:
        """The int8 of an accumulator, or of twice its value (only where `fast`)."""
        if self.fast:
            scaled = call("scale_twice" if twice else "scale", acc, *channel)
        else:
            scaled = call("requantize", acc, *channel) + i32(self.zero_point)
        return i8(call("clamp", scaled, *map(i32, self.clamp)))


def scaling_of(operator: Any, zero_point: int, bound: int) -> Scaling:
    """How an operator's accumulators, at most `bound` in size, become its outputs."""
    multiplier = np.atleast_1d(np.asarray(operator.multiplier, np.int64))
    shift = np.where(multiplier == 0, -LEAST, np.atleast_1d(np.asarray(operator.shift)))
    fast = bool(((shift <= -LEAST) & (shift >= -MOST)).all()) and bound < LIMIT
    return Scaling(multiplier, shift, zero_point, tuple(operator.clamp), fast)


def folded_bias(operator: Any, weight: np.ndarray, zero_point: int) -> tuple[np.ndarray, int]:
    """The bias with the input's zero point in it, and the largest accumulator on the way.

    weight: (O, ...) as summed. Raises LoweringError where an int32 accumulator could overflow.
    """
    flat = weight.reshape(len(weight), -1).astype(np.int64)
    bias = operator.bias.astype(np.int64) - zero_point * flat.sum(1)
    bound = int((np.abs(bias) + 128 * np.abs(flat).sum(1)).max())
    if bound >= 1 << 31:
        raise LoweringError(
            f"sums of products may reach {bound}, more than 32 bits hold",
            where=operator.where or operator.name,
            hint="use fewer input channels or smaller kernels",
        )
    return bias.astype(np.int32), bound
