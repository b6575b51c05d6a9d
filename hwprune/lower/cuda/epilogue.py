"""The epilogue of a CUDA kernel: what happens to each output element before it is stored.

In: a workload's steps, its extra inputs and packed per-channel parameters. Out: the final
expressions of a vector of elements. Everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from hwprune.lower.cuda.emit import Expr, Memory, const, row_length, tirx
from hwprune.lower.formulas import BINARY, UNARY, Maths, with_params
from hwprune.lower.spec import NHWC, PIXEL, STEP_PARAMS, Step, TensorSpec, Workload


def _clamp(x: Expr, low: float, high: float) -> Expr:
    return tirx.min(tirx.max(x, const(low)), const(high))


MATHS = Maths(const, tirx.exp, tirx.erf, _clamp)


def channel_params(workload: Workload, first: int) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of the packed parameters of the epilogue, from the `first` one on."""
    return [((_packed_length(p),), "float32") for p in workload.params[first:]]


def pack_channels(array: np.ndarray) -> np.ndarray:
    """(C,) or (1,) -> float32, padded with zeros to whole pixels."""
    flat = np.ascontiguousarray(array, dtype=np.float32).reshape(-1)
    return np.pad(flat, (0, 0 if len(flat) == 1 else -len(flat) % PIXEL))


def _packed_length(spec: TensorSpec) -> int:
    count = prod(spec.shape)
    return 1 if count == 1 else -(-count // PIXEL) * PIXEL


def flat_index(spec: TensorSpec, at: Sequence[Expr]) -> Expr:
    """Where the logical element `at` lies in a tensor that broadcasts to the index's shape."""
    at = list(at)[len(at) - len(spec.shape) :]
    index = [i if size > 1 else 0 for i, size in zip(at, spec.shape, strict=True)]
    if spec.layout == NHWC:
        index = [index[i] for i in (0, 2, 3, 1)]
    elif spec.view is not None:
        index = spec.view.index(index)
    memory = spec.physical(1)
    flat: Expr = 0
    for i, size in zip(index, memory, strict=True):
        flat = flat * size + i
    return flat


def channel_axis(spec: TensorSpec) -> int:
    """The logical dimension of the channels, of which vectors are made: the last in memory."""
    return 1 if spec.layout == NHWC else len(spec.shape) - 1


@dataclass(frozen=True)
class Epilogue:
    """The steps of a workload bound to the tensors of the function under construction.

    `axis` is the dimension that per-channel parameters go by.
    """

    workload: Workload
    extras: Sequence[Memory]
    params: Sequence[Memory]
    axis: int
    first_input: int = 1

    def store(
        self, y: Memory, at: Sequence[Expr], count: int, value: Callable[[Expr], Expr]
    ) -> None:
        """`value(e)` after all steps to `count` elements from the logical index `at` on.

        They lie one after the other, along the dimension that is the last in memory.
        """
        spec = self.workload.output
        index = flat_index(spec, at)
        along = channel_axis(spec)
        reads = iter(
            [
                self._extra(x, self.workload.inputs[self.first_input + i], index, at, count)
                for i, x in enumerate(self.extras)
            ]
        )
        channel = at[self.axis]
        wide = count if along == self.axis else 1
        values = iter([self._param(p, channel, wide) for p in self.params])
        steps = [
            (step, next(reads) if step.op in BINARY else None,
             [next(values) for _ in range(STEP_PARAMS.get(step.op, 0))])
            for step in self.workload.epilogue
        ]  # fmt: skip
        y.store_vector(index, count, lambda e: _run(steps, value(e), e))

    def _extra(
        self, x: Memory, spec: TensorSpec, index: Expr, at: Sequence[Expr], count: int
    ) -> Callable[..., Expr]:
        output = self.workload.output
        if spec.physical(1) == output.physical(1) and spec.layout == output.layout:
            return x.load_vector(index, count) if count > 1 else lambda e: x[index]
        along = channel_axis(output) - (len(output.shape) - len(spec.shape))
        if along < 0 or spec.shape[along] == 1:
            start = flat_index(spec, at)
            return lambda e: x[start]
        start = flat_index(spec, at)
        if along == channel_axis(spec) and spec.view is None and row_length(spec) % count == 0:
            return x.load_vector(start, count) if count > 1 else lambda e: x[start]
        moved, limit = list(at), spec.shape[along] - 1

        def element(e: Expr) -> Expr:
            moved[channel_axis(output)] = tirx.min(at[channel_axis(output)] + e, limit)
            return x[flat_index(spec, moved)]

        return element

    def _param(self, memory: Memory, channel: Expr, count: int) -> Callable[..., Expr]:
        if memory.shape == (1,):
            return lambda e: memory[0]
        if count == 1:
            return lambda e: memory[channel]
        return memory.load_vector(channel, count)


def _run(steps: Sequence[tuple[Step, Callable[..., Expr] | None, list]], x: Expr, e: Expr) -> Expr:
    for step, read, values in steps:
        if step.op in UNARY:
            x = UNARY[step.op](MATHS, x, *step.args)
        elif read is not None:
            x = BINARY[step.op](x, read(e))
        else:
            x = with_params(MATHS, step.op, x, [value(e) for value in values])
    return x
