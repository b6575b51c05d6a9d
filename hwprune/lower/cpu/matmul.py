"""Batched matrix products of two activations: the right one is packed into vectors, then as linear.

A register tile of rows x vectors stays in registers over the whole reduction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

from hwprune.lower.cpu import emit, tiles
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, const, loop, unroll
from hwprune.lower.cpu.product import holds_rows, product, row_tile
from hwprune.lower.spec import PLAIN, Kernel, Workload


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a matmul workload (both inputs PLAIN, no epilogue), or None."""
    if workload.op != "matmul" or workload.epilogue:
        return None
    if any(t.layout != PLAIN for t in (*workload.inputs, workload.output)):
        return None
    plan = _Plan(workload, context)
    shapes = tuple(t.shape for t in workload.inputs)
    func = emit.build_function("matmul", shapes, (), workload.output.shape, plan.emit)
    reason = f"{plan.tile.cols} rows x {plan.tile.blocks} vectors in registers"
    return Kernel(workload, func, "cpu.matmul", reason, lambda params: params)


@dataclass(frozen=True)
class _Plan:
    workload: Workload
    context: Context

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.workload.output.shape[:-2]

    @property
    def rows(self) -> int:
        return self.workload.output.shape[-2]

    @property
    def columns(self) -> int:
        return self.workload.output.shape[-1]

    @property
    def depth(self) -> int:
        return self.workload.inputs[0].shape[-1]

    @property
    def blocks(self) -> int:
        return emit.blocks(self.columns, self.context.lanes)

    @property
    def tile(self) -> tiles.Tile:
        return row_tile(self.rows, self.blocks, self.depth, self.context)

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        """Threads share the batch where it is large enough, else the vectors of columns."""
        threads, batch = self.context.threads, prod(self.batch_shape)
        by_batch = batch >= threads
        with self._shared(batch, by_batch) as (first, count), loop(count) as i:
            at = emit.split_index(first + i, self.batch_shape) if self.batch_shape else []
            packed = T.alloc_buffer((self.blocks, self.depth, self.context.lanes), emit.real())
            with self._shared(self.blocks, not by_batch) as (start, mine), loop(mine) as b:
                self._pack(xs[1], at, start + b, packed)
            for part in tiles.segments(self.blocks, self.tile.blocks):
                with self._shared(part.count, not by_batch) as (start, mine):
                    for rows in tiles.segments(self.rows, self.tile.cols):
                        with loop(mine) as bi, loop(rows.count) as ri:
                            block = part.start + (start + bi) * part.size
                            row = rows.start + ri * rows.size
                            shape = tiles.Tile(1, rows.size, part.size)
                            self._tile(xs[0], packed, y, at, row, block, shape)

    @contextmanager
    def _shared(self, extent: int, parallel: bool) -> Iterator[tuple[Expr, Expr]]:
        with emit.split_threads(extent, self.context.threads if parallel else 1) as share:
            yield share

    def _pack(self, x: Buffer, at: list[Expr], block: Expr, packed: Buffer) -> None:
        """One vector of columns, for every step of the reduction; zeros past the last column."""
        lanes = self.context.lanes
        with loop(self.depth) as k:
            if self.columns % lanes == 0:
                emit.store_vector(
                    packed, [block, k], lanes, lambda lane: x[(*at, k, block * lanes + lane)]
                )
                return
            with T.serial(lanes) as lane:
                column = block * lanes + lane
                inside = emit.tirx.min(column, self.columns - 1)
                value = emit.tirx.Select(column < self.columns, x[(*at, k, inside)], const(0.0))
                T.buffer_store(packed, value, [block, k, lane])

    def _tile(
        self,
        x: Buffer,
        packed: Buffer,
        y: Buffer,
        at: list[Expr],
        row: Expr,
        block: Expr,
        tile: tiles.Tile,
    ) -> None:
        acc = product(
            tile,
            self.depth,
            lambda r, k, j: x[(*at, row + r, k + j)],
            packed,
            block,
            held=holds_rows(self.depth, self.context),
            step=self.context.step,
        )
        with unroll(tile.cols) as r, unroll(tile.blocks) as b:
            self._store(acc, y, (*at, row + r), block + b, r * tile.blocks + b)

    def _store(self, acc: Buffer, y: Buffer, at: tuple[Expr, ...], block: Expr, i: Expr) -> None:
        lanes = self.context.lanes
        if self.columns % lanes == 0:
            with T.vectorized(lanes) as lane:
                T.buffer_store(y, acc[i, lane], [*at, block * lanes + lane])
            return
        with T.serial(lanes) as lane:
            column = block * lanes + lane
            with T.If(column < self.columns), T.Then():
                T.buffer_store(y, acc[i, lane], [*at, column])
