"""The epilogue of a kernel: what happens to each output element before it is stored.

In: a workload's steps, its extra inputs and packed per-channel parameters. Out: the final
expression of one lane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hwprune.lower.cpu import emit
from hwprune.lower.cpu.emit import Buffer, Expr, tirx
from hwprune.lower.cpu.maths import MATHS
from hwprune.lower.formulas import BINARY, UNARY, with_params
from hwprune.lower.spec import PACKED, STEP_PARAMS, Step, TensorSpec, Workload
from hwprune.target import FLOAT32

HEAVY = frozenset({"sigmoid", "silu", "elu", "tanh", "gelu", "gelu_tanh"})


def count_params(steps: Sequence[Step]) -> int:
    """How many per-channel parameters the steps consume."""
    return sum(STEP_PARAMS.get(s.op, 0) for s in steps)


def pack_channels(array: np.ndarray, lanes: int) -> np.ndarray:
    """(C,) or (1,) -> float32 of whole vectors, zero-padded."""
    flat = np.ascontiguousarray(array, dtype=np.float32).reshape(-1)
    return np.pad(flat, (0, -len(flat) % lanes))


@dataclass(frozen=True)
class Position:
    """Where an output element lies: logical indices, and the channel as block and lane."""

    n: Expr
    block: Expr
    h: Expr
    w: Expr
    lane: Expr


@dataclass(frozen=True)
class Epilogue:
    """The steps of a workload bound to the buffers of the function under construction."""

    workload: Workload
    lanes: int
    extras: Sequence[Buffer]
    params: Sequence[Buffer]
    first_param: int
    first_input: int = 1

    @property
    def heavy(self) -> bool:
        """Whether the steps are long enough that unrolling them over a tile would not pay."""
        return any(step.op in HEAVY for step in self.workload.epilogue)

    def apply(self, value: Expr, at: Position) -> Expr:
        """The element at `at` after all steps (packed 4-D output)."""
        channel = at.block * self.lanes + at.lane
        return self._run(value, channel, lambda i: self._read(i, at))

    def apply_flat(self, value: Expr, channel: Expr, read: Callable[[int], Expr]) -> Expr:
        """As `apply`, with the channel index and a reader for the i-th extra input given."""
        return self._run(value, channel, read)

    def _run(self, value: Expr, channel: Expr, read: Callable[[int], Expr]) -> Expr:
        param, extra = 0, 0
        for step in self.workload.epilogue:
            if step.op in UNARY:
                value = _unary(step, value)
            elif step.op in BINARY:
                value = BINARY[step.op](value, read(extra))
                extra += 1
            else:
                values = [self._param(param + i, channel) for i in range(STEP_PARAMS[step.op])]
                param += len(values)
                value = with_params(MATHS, step.op, value, values)
        return value

    def _param(self, index: int, channel: Expr) -> Expr:
        spec = self.workload.params[self.first_param + index]
        count = 1
        for size in spec.shape:
            count *= size
        buffer = self.params[index]
        return buffer[0] if count == 1 else buffer[channel]

    def _read(self, index: int, at: Position) -> Expr:
        spec = self.workload.inputs[self.first_input + index]
        return read_packed(self.extras[index], spec, at, self.lanes)


def _unary(step: Step, value: Expr) -> Expr:
    """An activation of a value; those made of exponentials in float32."""
    if step.op not in HEAVY:
        return UNARY[step.op](MATHS, value, *step.args)
    dtype = emit.real()
    with emit.computing(FLOAT32):
        return emit.cast(UNARY[step.op](MATHS, emit.cast(value, FLOAT32), *step.args), dtype)


def read_packed(buffer: Buffer, spec: TensorSpec, at: Position, lanes: int) -> Expr:
    """An element of a broadcast 4-D input at a position of a packed output."""
    n, c, h, w = (1,) * (4 - len(spec.shape)) + spec.shape
    i_n = at.n if n > 1 else 0
    i_h = at.h if h > 1 else 0
    i_w = at.w if w > 1 else 0
    if spec.layout == PACKED:
        if c == 1:
            return buffer[i_n, 0, i_h, i_w, 0]
        return buffer[i_n, at.block, i_h, i_w, at.lane]
    channel = tirx.min(at.block * lanes + at.lane, c - 1) if c > 1 else 0
    return buffer[tuple([i_n, channel, i_h, i_w][4 - len(spec.shape) :])]
