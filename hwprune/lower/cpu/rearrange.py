"""Copies of row-major tensors, row by row: concat, slice and roll."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from hwprune.lower.cpu import emit, rows
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, loop
from hwprune.lower.spec import PLAIN, Kernel, TensorSpec, Workload

Where = Callable[[list[Expr]], list[Expr]]


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a concat, slice or roll workload without epilogue and a PLAIN result."""
    if workload.op not in _BODIES or workload.epilogue or workload.output.layout != PLAIN:
        return None
    if any(t.view is None for t in workload.inputs) or not workload.output.shape:
        return None
    lanes = context.lanes
    func = emit.build_function(
        workload.op,
        emit.physical_inputs(workload, lanes),
        (),
        workload.output.shape,
        lambda xs, ps, y: _BODIES[workload.op](_Copy(workload, context, xs, y)),
    )

    def pack(params: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return params

    return Kernel(workload, func, f"cpu.{workload.op}", "row by row", pack)


@dataclass(frozen=True)
class _Copy:
    """The function under construction."""

    workload: Workload
    context: Context
    xs: list[Buffer]
    y: Buffer

    def box(
        self, shape: tuple[int, ...], x: Buffer, spec: TensorSpec, read: Where, put: Where
    ) -> None:
        """Copy every element of a box; `read` and `put` say where it lies on either side."""
        outer, size = shape[:-1], shape[-1]
        with emit.split_threads(prod(outer), self.context.threads) as (first, count):
            with loop(count) as i:
                at = emit.split_index(first + i, outer) if outer else []

                def copy(j: Expr) -> None:
                    assert spec.view is not None
                    source = spec.view.index(read([*at, j]))
                    T.buffer_store(self.y, x[tuple(source)], put([*at, j]))

                rows.each(size, self.context.lanes, copy)


def _concat(copy: _Copy) -> None:
    axis, offset = copy.workload.attr("axis"), 0
    for spec, x in zip(copy.workload.inputs, copy.xs, strict=True):
        copy.box(spec.shape, x, spec, lambda at: at, _shifted(axis, offset))
        offset += spec.shape[axis]


def _shifted(axis: int, offset: Expr, step: int = 1) -> Where:
    def move(at: list[Expr]) -> list[Expr]:
        return [i * step + offset if a == axis else i for a, i in enumerate(at)]

    return move


def _slice(copy: _Copy) -> None:
    axis, start, step = (copy.workload.attr(k) for k in ("axis", "start", "step"))
    read = _shifted(axis, start, step)
    copy.box(copy.workload.output.shape, copy.xs[0], copy.workload.inputs[0], read, lambda at: at)


def _roll(copy: _Copy) -> None:
    """One box for every combination of what wraps around and what does not."""
    spec = copy.workload.inputs[0]
    shifts = dict(zip(copy.workload.attr("axes"), copy.workload.attr("shifts"), strict=True))
    pieces = [_wrapped(size, shifts.get(axis, 0)) for axis, size in enumerate(spec.shape)]
    for box in product(*pieces):
        sizes, sources, targets = zip(*box, strict=True)
        copy.box(sizes, copy.xs[0], spec, _moved(sources), _moved(targets))


def _wrapped(size: int, shift: int) -> list[tuple[int, int, int]]:
    """(how many, from where, to where) of the pieces of a rolled dimension."""
    shift %= size
    pieces = [(size - shift, 0, shift), (shift, size - shift, 0)]
    return [piece for piece in pieces if piece[0]]


def _moved(offsets: tuple[int, ...]) -> Where:
    return lambda at: [i + offset for i, offset in zip(at, offsets, strict=True)]


_BODIES: dict[str, Callable[[_Copy], None]] = {"concat": _concat, "slice": _slice, "roll": _roll}
