"""Copies between layouts that move whole dimensions: transposes, parts of tensors, packing.

Runs of memory are copied as vectors where source and result have one in common; otherwise the
result is written in order, block by block, and the source gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from hwprune.lower.cpu import emit, rows
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, loop, tirx
from hwprune.lower.spec import LAST, PACKED, PLAIN, Kernel, TensorSpec, Workload

TILE = 16  # rows of a transpose that share the cache lines they read


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a layout workload that reads a view or a packed image, or None."""
    if workload.op != "layout":
        return None
    source, result = workload.inputs[0], workload.output
    body: _Plain | _FromPacked | _ToPacked
    if source.view is not None and result.layout == PLAIN:
        body = _Plain(workload, context)
    elif source.layout == LAST and result.layout == PLAIN:
        body = _FromPacked(workload, context)
    elif source.view is not None and result.layout in (PACKED, LAST) and source.layout != PLAIN:
        body = _ToPacked(workload, context)
    else:
        return None
    lanes = context.lanes
    func = emit.build_function(
        "layout", emit.physical_inputs(workload, lanes), (), result.physical(lanes), body.emit
    )
    return Kernel(workload, func, "cpu.permute", body.reason, lambda params: params)


def _read(x: Buffer, spec: TensorSpec, at: list[Expr]) -> Expr:
    assert spec.view is not None
    return x[tuple(spec.view.index(at))]


@dataclass(frozen=True)
class _Plain:
    """A view made row-major."""

    workload: Workload
    context: Context

    @property
    def shared(self) -> int:
        """How many last dimensions are the last axes of memory too, in the same order."""
        view, rank = self.workload.inputs[0].view, len(self.workload.output.shape)
        assert view is not None
        count = 0
        while count < min(rank, len(view.axes)) and view.axes[-1 - count] == rank - 1 - count:
            count += 1
        return count

    @property
    def reason(self) -> str:
        """Why it is done so."""
        return "whole rows" if self.shared else "gathered"

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        if self.shared:
            self._rows(xs[0], y)
        else:
            self._gather(xs[0], y)

    def _rows(self, x: Buffer, y: Buffer) -> None:
        spec, shape = self.workload.inputs[0], self.workload.output.shape
        outer, inner = shape[: len(shape) - self.shared], shape[len(shape) - self.shared :]
        with emit.split_threads(prod(outer), self.context.threads) as (first, count):
            with loop(count) as i:
                at = emit.split_index(first + i, outer) if outer else []

                def copy(j: Expr) -> None:
                    inside = [*at, *emit.split_index(j, inner)]
                    T.buffer_store(y, _read(x, spec, inside), inside)

                self._columns(prod(inner[:-1]), inner[-1], copy)

    def _columns(self, count: int, size: int, copy: rows.Action) -> None:
        """Every element of the inner dimensions; no vector crosses the end of a row."""
        with loop(count) as row:
            rows.each(size, self.context.lanes, lambda j: copy(row * size + j))

    def _gather(self, x: Buffer, y: Buffer) -> None:
        """By blocks of the dimension that is the last of memory, to use its cache lines whole."""
        spec, shape = self.workload.inputs[0], self.workload.output.shape
        view, lanes = spec.view, self.context.lanes
        assert view is not None
        near = next(a for a in reversed(view.axes) if isinstance(a, int))
        tiles = -(-shape[near] // TILE)
        outer = (*shape[:near], tiles, *shape[near + 1 : -1])
        columns = emit.blocks(shape[-1], lanes)
        with emit.split_threads(prod(outer), self.context.threads) as (first, count):
            with loop(count) as i, loop(columns) as column:
                at = emit.split_index(first + i, outer)
                start = at[near] * TILE
                with T.serial(tirx.min(TILE, shape[near] - start)) as inside:
                    at[near] = start + inside
                    self._vector(x, y, at, column)

    def _vector(self, x: Buffer, y: Buffer, at: list[Expr], column: Expr) -> None:
        spec, lanes = self.workload.inputs[0], self.context.lanes
        size = self.workload.output.shape[-1]
        if size % lanes == 0:
            with T.vectorized(lanes) as lane:
                where = [*at, column * lanes + lane]
                T.buffer_store(y, _read(x, spec, where), where)
            return
        with T.serial(tirx.min(lanes, size - column * lanes)) as lane:
            where = [*at, column * lanes + lane]
            T.buffer_store(y, _read(x, spec, where), where)


@dataclass(frozen=True)
class _FromPacked:
    """The pixels of a packed image, channels last, made row-major."""

    workload: Workload
    context: Context
    reason = "vectors of channels"

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        n_out, height, width, channels = self.workload.output.shape
        lanes = self.context.lanes
        with emit.split_threads(n_out * height, self.context.threads) as (first, count):
            with loop(count) as i, loop(width) as col:
                n, row = emit.split_index(first + i, (n_out, height))

                def copy(c: Expr) -> None:
                    value = xs[0][n, c // lanes, row, col, c % lanes]
                    T.buffer_store(y, value, [n, row, col, c])

                rows.each(channels, lanes, copy)


@dataclass(frozen=True)
class _ToPacked:
    """A view made a packed image."""

    workload: Workload
    context: Context
    reason = "vectors of channels"

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        spec, lanes = self.workload.inputs[0], self.context.lanes
        n_out, channels, height, width = self.workload.output.image
        last = self.workload.output.layout == LAST
        extents = (n_out, emit.blocks(channels, lanes), height)
        with emit.split_threads(prod(extents), self.context.threads) as (first, count):
            with loop(count) as i, loop(width) as col:
                n, block, row = emit.split_index(first + i, extents)
                with T.vectorized(lanes) as lane:
                    channel = block * lanes + lane
                    if channels % lanes:
                        channel = tirx.min(channel, channels - 1)
                    at = [n, row, col, channel] if last else [n, channel, row, col]
                    T.buffer_store(y, _read(xs[0], spec, at), [n, block, row, col, lane])
