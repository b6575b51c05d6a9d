"""Kernels that move data or work by element: elementwise, concat, slice, shuffle, layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwprune.lower.cpu import emit
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, loop, tirx
from hwprune.lower.cpu.epilogue import Epilogue, Position, pack_channels, read_packed
from hwprune.lower.formulas import BINARY, supported
from hwprune.lower.spec import PACKED, PLAIN, Kernel, TensorSpec, Workload


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of an elementwise, concat, slice, shuffle or layout workload."""
    if not supported(workload.epilogue) or workload.op not in _BODIES:
        return None
    lanes = context.lanes
    if workload.output.layout == PACKED or workload.op == "layout":
        if len(workload.output.shape) != 4:
            return None
        body: type[_Packed] | type[_Plain] = _BODIES[workload.op]
    elif workload.op == "elementwise" and _plain_elementwise(workload):
        body = _Plain
    else:
        return None
    shapes = tuple((emit.blocks(math.prod(p.shape), lanes) * lanes,) for p in workload.params)
    func = emit.build_function(
        workload.op,
        emit.physical_inputs(workload, lanes),
        shapes,
        workload.output.physical(lanes),
        body(workload, context).emit,
    )

    def pack(params: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return tuple(pack_channels(p, lanes) for p in params)

    return Kernel(workload, func, f"cpu.{workload.op}", "element by element", pack)


def _plain_elementwise(workload: Workload) -> bool:
    """Row-major operands that broadcast; per-channel parameters along axis 1 or the last."""
    shape = workload.output.shape
    first, *others = workload.inputs
    return (
        first.shape == shape
        and len(shape) > 0
        and all(t.layout == PLAIN and len(t.shape) <= len(shape) for t in (first, *others))
    )


@dataclass(frozen=True)
class _Packed:
    """Any kernel that computes a packed output one vector at a time from `read`."""

    workload: Workload
    context: Context

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        lanes = self.context.lanes
        n_out, channels, height, width = self.workload.output.shape
        extents = (n_out, emit.blocks(channels, lanes), height)
        epilogue = Epilogue(
            self.workload, lanes, self.extras(xs), ps, 0, len(xs) - len(self.extras(xs))
        )
        with emit.split_threads(math.prod(extents), self.context.threads) as (first, count):
            with loop(count) as i:
                n, block, row = emit.split_index(first + i, extents)
                with loop(width) as col, T.vectorized(lanes) as lane:
                    at = Position(n, block, row, col, lane)
                    value = epilogue.apply(self.read(xs, at), at)
                    T.buffer_store(y, value, [n, block, row, col, lane])

    def extras(self, xs: list[Buffer]) -> list[Buffer]:
        """The inputs that the epilogue consumes."""
        return xs[1:]

    def read(self, xs: list[Buffer], at: Position) -> Expr:
        """The main operand's element."""
        return read_packed(xs[0], self.workload.inputs[0], at, self.context.lanes)


@dataclass(frozen=True)
class _Slice(_Packed):
    def read(self, xs: list[Buffer], at: Position) -> Expr:
        lanes = self.context.lanes
        axis, start, step = (self.workload.attr(k) for k in ("axis", "start", "step"))
        if axis == 2:
            return xs[0][at.n, at.block, start + at.h * step, at.w, at.lane]
        if axis == 3:
            return xs[0][at.n, at.block, at.h, start + at.w * step, at.lane]
        if axis == 0:
            return xs[0][start + at.n * step, at.block, at.h, at.w, at.lane]
        if step == 1 and start % lanes == 0:
            return xs[0][at.n, at.block + start // lanes, at.h, at.w, at.lane]
        last = self.workload.inputs[0].shape[1] - 1
        channel = tirx.min(start + (at.block * lanes + at.lane) * step, last)
        return xs[0][at.n, channel // lanes, at.h, at.w, channel % lanes]


@dataclass(frozen=True)
class _Shuffle(_Packed):
    def read(self, xs: list[Buffer], at: Position) -> Expr:
        lanes, groups = self.context.lanes, self.workload.attr("groups")
        channels = self.workload.output.shape[1]
        target = tirx.min(at.block * lanes + at.lane, channels - 1)
        channel = target % groups * (channels // groups) + target // groups
        return xs[0][at.n, channel // lanes, at.h, at.w, channel % lanes]


@dataclass(frozen=True)
class _Concat(_Packed):
    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        """Part after part: whole vectors where a part starts on one, else channel by channel.

        A whole vector may overrun its part; the next part overwrites what it overran.
        """
        lanes = self.context.lanes
        n_out, channels, height, width = self.workload.output.shape
        parts = xs[: len(xs) - sum(s.op in BINARY for s in self.workload.epilogue)]
        with emit.split_threads(n_out * height, self.context.threads) as (first, count):
            with loop(count) as i:
                n, row = emit.split_index(first + i, (n_out, height))
                offset = 0
                if channels % lanes:  # lanes past the last channel must be finite
                    with loop(width) as col:
                        at = [n, channels // lanes, row, col]
                        emit.store_vector(y, at, lanes, lambda _: emit.const(0.0))
                for spec, x in zip(self.workload.inputs, parts, strict=False):
                    self._copy(n, row, width, offset, spec.shape[1], x, y)
                    offset += spec.shape[1]
                if self.workload.epilogue:
                    self._epilogue(n, row, xs[len(parts) :], len(parts), ps, y)

    def _copy(
        self, n: Expr, row: Expr, width: int, offset: int, channels: int, x: Buffer, y: Buffer
    ) -> None:
        lanes = self.context.lanes
        if offset % lanes == 0:
            with loop(emit.blocks(channels, lanes)) as block, loop(width) as col:
                emit.store_vector(
                    y,
                    [n, block + offset // lanes, row, col],
                    lanes,
                    lambda lane: x[n, block, row, col, lane],
                )
            return
        with loop(channels) as c, loop(width) as col:
            target = offset + c
            value = x[n, c // lanes, row, col, c % lanes]
            T.buffer_store(y, value, [n, target // lanes, row, col, target % lanes])

    def _epilogue(
        self, n: Expr, row: Expr, extras: list[Buffer], first: int, ps: list[Buffer], y: Buffer
    ) -> None:
        lanes = self.context.lanes
        _, channels, _, width = self.workload.output.shape
        epilogue = Epilogue(self.workload, lanes, extras, ps, 0, first)
        with loop(emit.blocks(channels, lanes)) as block, loop(width) as col:
            with T.vectorized(lanes) as lane:
                at = Position(n, block, row, col, lane)
                value = epilogue.apply(y[n, block, row, col, lane], at)
                T.buffer_store(y, value, [n, block, row, col, lane])


@dataclass(frozen=True)
class _Layout(_Packed):
    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        if self.workload.output.layout == PACKED:
            super().emit(xs, ps, y)
            return
        lanes = self.context.lanes
        n_out, channels, height, width = self.workload.output.shape
        extents = (n_out, channels, height)
        with emit.split_threads(math.prod(extents), self.context.threads) as (first, count):
            with loop(count) as i:
                n, c, row = emit.split_index(first + i, extents)
                with loop(width) as col:
                    value = xs[0][n, c // lanes, row, col, c % lanes]
                    T.buffer_store(y, value, [n, c, row, col])

    def read(self, xs: list[Buffer], at: Position) -> Expr:
        spec: TensorSpec = self.workload.inputs[0]
        return read_packed(xs[0], spec, at, self.context.lanes)


@dataclass(frozen=True)
class _Plain:
    """Elementwise on row-major tensors: a flat run of vectors and a scalar rest."""

    workload: Workload
    context: Context

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        shape, lanes = self.workload.output.shape, self.context.lanes
        epilogue = Epilogue(self.workload, lanes, xs[1:], ps, 0)
        inner = shape[-1]
        channel_axis = 1 if len(shape) == 4 else len(shape) - 1

        def element(at: list[Expr]) -> Expr:
            read: Callable[[int], Expr] = lambda i: xs[1 + i][self._where(1 + i, at)]  # noqa: E731
            return epilogue.apply_flat(xs[0][tuple(at)], at[channel_axis], read)

        with emit.split_threads(math.prod(shape[:-1]), self.context.threads) as (first, count):
            with loop(count) as i:
                outer = emit.split_index(first + i, shape[:-1]) if len(shape) > 1 else []
                whole = inner // lanes
                if whole:
                    with loop(whole) as j, T.vectorized(lanes) as lane:
                        at = [*outer, j * lanes + lane]
                        T.buffer_store(y, element(at), at)
                if inner % lanes:
                    with T.serial(inner % lanes) as j:
                        at = [*outer, whole * lanes + j]
                        T.buffer_store(y, element(at), at)

    def _where(self, operand: int, at: list[Expr]) -> tuple[Expr, ...]:
        """The index of an operand's element by NumPy's broadcasting."""
        sizes = self.workload.inputs[operand].shape
        inside = at[len(at) - len(sizes) :]
        return tuple(i if size > 1 else 0 for i, size in zip(inside, sizes, strict=True))


_BODIES: dict[str, type[_Packed]] = {
    "elementwise": _Packed,
    "concat": _Concat,
    "slice": _Slice,
    "shuffle": _Shuffle,
    "layout": _Layout,
}
