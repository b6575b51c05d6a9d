"""Linear layers: input rows against vectors of outputs, weights read once, in order.

Every tile of rows fetches a share of the weights of the next tile of vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hwprune.lower.cpu import emit, tiles
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, loop, unroll
from hwprune.lower.cpu.epilogue import Epilogue, pack_channels
from hwprune.lower.cpu.fetch import Share
from hwprune.lower.cpu.product import FEW, holds_rows, product, row_tile
from hwprune.lower.formulas import supported
from hwprune.lower.spec import PLAIN, Kernel, Workload


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a linear workload (PLAIN, extra inputs of the output's shape), or None."""
    if workload.op != "linear" or not supported(workload.epilogue):
        return None
    if any(t.layout != PLAIN for t in workload.inputs):
        return None
    if any(t.shape != workload.output.shape for t in workload.inputs[1:]):
        return None
    plan = _Plan(workload, context)
    func = emit.build_function(
        "linear",
        tuple(t.shape for t in workload.inputs),
        plan.param_shapes(),
        workload.output.shape,
        plan.emit,
    )
    reason = f"{plan.tile.cols} rows x {plan.tile.blocks} vectors in registers"
    return Kernel(workload, func, "cpu.linear", reason, plan.pack)


@dataclass(frozen=True)
class _Plan:
    workload: Workload
    context: Context

    @property
    def rows(self) -> int:
        return int(np.prod(self.workload.inputs[0].shape[:-1]))

    @property
    def outputs(self) -> int:
        return self.workload.output.shape[-1]

    @property
    def depth(self) -> int:
        return self.workload.inputs[0].shape[-1]

    @property
    def blocks(self) -> int:
        return emit.blocks(self.outputs, self.context.lanes)

    @property
    def tile(self) -> tiles.Tile:
        return row_tile(self.rows, self.blocks, self.depth, self.context)

    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        lanes = self.context.lanes
        shapes: list[tuple[int, ...]] = [(self.blocks, self.depth, lanes)]
        for spec in self.workload.params[1:]:
            shapes.append((emit.blocks(int(np.prod(spec.shape)), lanes) * lanes,))
        return tuple(shapes)

    def pack(self, params: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """(M, K) -> (M / lanes, K, lanes): each vector of outputs is one stream of weights."""
        lanes = self.context.lanes
        weight = np.zeros((self.blocks * lanes, self.depth), np.float32)
        weight[: self.outputs] = params[0]
        packed = weight.reshape(self.blocks, lanes, self.depth).transpose(0, 2, 1)
        rest = tuple(pack_channels(p, lanes) for p in params[1:])
        return (np.ascontiguousarray(packed), *rest)

    @property
    def steps(self) -> int:
        """Steps of the reduction."""
        return self.depth // emit.step(self.depth, self.context.step)

    def row_segments(self) -> tuple[tiles.Segment, ...]:
        """Tiles of rows."""
        return tiles.segments(self.rows, self.tile.cols)

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        epilogue = Epilogue(self.workload, self.context.lanes, xs[1:], ps[1:], first_param=1)
        writer = _Writer(self, xs[0], ps[0], y, xs[1:], epilogue)
        for part in tiles.segments(self.blocks, self.tile.blocks):
            with emit.split_threads(part.count, self.context.threads) as (first, count):
                writer.part(part, first, count)


@dataclass(frozen=True)
class _Tile:
    """Rows from `row` on x vectors from `block` on; the `number` of it among the tiles of rows."""

    row: Expr
    rows: int
    block: Expr
    vectors: int
    number: Expr


@dataclass(frozen=True)
class _Writer:
    """Writes the tiles."""

    plan: _Plan
    x: Buffer
    weight: Buffer
    y: Buffer
    extras: list[Buffer]
    epilogue: Epilogue

    def part(self, part: tiles.Segment, first: Expr, count: Expr) -> None:
        """Some tiles of vectors, each for all rows before the next."""
        for tile in self._tiles(part, first, count):
            self._store(self._sums(tile), tile)

    def _tiles(self, part: tiles.Segment, first: Expr, count: Expr) -> Iterator[_Tile]:
        with loop(count) as i:
            block, done = part.start + (first + i) * part.size, 0
            for rows in self.plan.row_segments():
                with loop(rows.count) as j:
                    row = rows.start + j * rows.size
                    yield _Tile(row, rows.size, block, part.size, done + j)
                done += rows.count

    def _sums(self, tile: _Tile) -> Buffer:
        """The sums of a tile; meanwhile a share of what the next tile of vectors needs."""
        shape = tiles.Tile(1, tile.rows, tile.vectors)

        def left(r: Expr, k: Expr, j: Expr) -> Expr:
            return self.x[(*self._at(tile, r), k + j)]

        fetch, held = self._next(tile), holds_rows(self.plan.depth, self.plan.context)
        return product(
            shape, self.plan.depth, left, self.weight, tile.block, fetch,
            held=held, step=self.plan.context.step,
        )  # fmt: skip

    def _next(self, tile: _Tile) -> Share | None:
        """Fetches the weights of the next vectors, a share in every tile of rows."""
        plan = self.plan
        if plan.rows < FEW:
            return None
        return Share(
            weight=self.weight,
            block=tile.block + tile.vectors,
            blocks=tile.vectors,
            first=0,
            rows=plan.depth,
            slot=tile.number * plan.steps,
            slots=sum(rows.count for rows in plan.row_segments()) * plan.steps,
        )

    def _store(self, acc: Buffer, tile: _Tile) -> None:
        """Store a tile with its epilogue.

        A long one loops over a staged copy: unrolled over the tile it would not pay.
        """
        shape = (tile.rows * tile.vectors, self.plan.context.lanes)
        source: Buffer = acc
        over: type[loop] = unroll
        if self.epilogue.heavy:
            source, over = T.alloc_buffer(shape, emit.real(), annotations=emit.ON_STACK), loop
            with unroll(shape[0]) as i:
                emit.store_vector(source, [i], shape[1], lambda lane: acc[i, lane])
        with over(tile.rows) as r, over(tile.vectors) as b:
            at, first = self._at(tile, r), (tile.block + b) * shape[1]
            i = r * tile.vectors + b

            def put(lane: Expr) -> None:
                value = self.epilogue.apply_flat(
                    source[i, lane], first + lane, lambda e: self.extras[e][(*at, first + lane)]
                )
                T.buffer_store(self.y, value, [*at, first + lane])

            self._lanes(first, put)

    def _at(self, tile: _Tile, r: Expr) -> list[Expr]:
        """The index of a row of a tile."""
        return emit.split_index(tile.row + r, self.plan.workload.output.shape[:-1])

    def _lanes(self, first: Expr, put: Callable[[Expr], None]) -> None:
        """`put` for every output of a vector; the last vector may be longer than the output."""
        lanes, rest = self.plan.context.lanes, self.plan.outputs % self.plan.context.lanes
        if rest == 0:
            with T.vectorized(lanes) as lane:
                put(lane)
            return
        with T.If(first + lanes <= self.plan.outputs):
            with T.Then(), T.vectorized(lanes) as lane:
                put(lane)
            with T.Else(), T.serial(rest) as lane:
                put(lane)
