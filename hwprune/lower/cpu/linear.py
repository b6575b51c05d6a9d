"""Linear layers: a few input rows against many output vectors, weights read once, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwprune.lower.cpu import emit, tiles
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, const, loop, unroll
from hwprune.lower.cpu.epilogue import Epilogue, pack_channels, supported
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
        """One row streams eight vectors of weights; more rows share them as a convolution does."""
        if self.rows < 4:
            return tiles.Tile(1, 1, min(8, self.blocks))
        return tiles.choose(1, self.rows, self.blocks, self.context.registers, one_row=True)

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

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        lanes, tile = self.context.lanes, self.tile
        epilogue = Epilogue(self.workload, lanes, xs[1:], ps[1:], first_param=1)
        for part in tiles.segments(self.blocks, tile.blocks):
            with emit.split_threads(part.count, self.context.threads) as (first, count):
                for rows in tiles.segments(self.rows, tile.cols):
                    acc = T.alloc_buffer(
                        (rows.size * part.size, lanes),
                        "float32",
                        scope="local",
                        annotations=emit.ON_STACK,
                    )
                    with loop(count) as bi, loop(rows.count) as ri:
                        block = part.start + (first + bi) * part.size
                        row = rows.start + ri * rows.size
                        self._reduce(row, rows.size, part.size, block, xs[0], ps[0], acc)
                        self._store(row, block, rows.size, part.size, acc, y, xs[1:], epilogue)

    def _reduce(
        self,
        row: Expr,
        rows: int,
        vectors: int,
        block: Expr,
        x: Buffer,
        weight: Buffer,
        acc: Buffer,
    ) -> None:
        lanes, shape = self.context.lanes, self.workload.inputs[0].shape
        with T.unroll(rows * vectors) as i:
            emit.store_vector(acc, [i], lanes, lambda _: const(0.0))
        with loop(self.depth) as k, unroll(rows) as r, unroll(vectors) as b:
            value = x[(*emit.split_index(row + r, shape[:-1]), k)]
            i = r * vectors + b
            with T.vectorized(lanes) as lane:
                product = value * weight[block + b, k, lane]
                T.buffer_store(acc, acc[i, lane] + product, [i, lane])

    def _store(
        self,
        row: Expr,
        block: Expr,
        rows: int,
        vectors: int,
        acc: Buffer,
        y: Buffer,
        extras: list[Buffer],
        epilogue: Epilogue,
    ) -> None:
        """Whole vectors at once; the last vector may be longer than the output.

        Long epilogues loop over a staged copy: unrolled over the tile they would not pay.
        """
        lanes, shape = self.context.lanes, self.workload.output.shape
        repeat: type[loop] = unroll
        if epilogue.heavy:
            staged = T.alloc_buffer((rows * vectors, lanes), "float32", annotations=emit.ON_STACK)
            with unroll(rows * vectors) as i:
                emit.store_vector(staged, [i], lanes, lambda lane: acc[i, lane])
            acc, repeat = staged, loop
        with repeat(rows) as r, repeat(vectors) as b:
            at = emit.split_index(row + r, shape[:-1])
            first = (block + b) * lanes

            def put(lane: Expr) -> None:
                channel = first + lane
                value = epilogue.apply_flat(
                    acc[r * vectors + b, lane], channel, lambda i: extras[i][(*at, channel)]
                )
                T.buffer_store(y, value, [*at, channel])

            self._lanes(first, put)

    def _lanes(self, first: Expr, put: Callable[[Expr], None]) -> None:
        """`put` for every output of a vector."""
        lanes, rest = self.context.lanes, self.outputs % self.context.lanes
        if rest == 0:
            with T.vectorized(lanes) as lane:
                put(lane)
            return
        with T.If(first + lanes <= self.outputs):
            with T.Then(), T.vectorized(lanes) as lane:
                put(lane)
            with T.Else(), T.serial(rest) as lane:
                put(lane)
