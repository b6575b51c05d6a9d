"""3x3 convolutions of stride 1 by Winograd's minimal filtering: fewer products, some additions.

A tile of m x m outputs is computed from (m+2)**2 products per pair of channels in place of 9 m**2:
the input tiles are transformed (B), multiplied channel by channel with weights that were
transformed at compile time (G), and transformed back (A). Tiles are handled in chunks, so that what
lies between the transforms stays in the level-2 cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from hwprune.lower.cpu import emit, tiles, winograd_choice
from hwprune.lower.cpu.border import copy_with_border
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, const, loop, tirx, unroll
from hwprune.lower.cpu.epilogue import Epilogue, Position, pack_channels
from hwprune.lower.cpu.geometry import Geometry
from hwprune.lower.cpu.winograd_choice import STEP, choose, product_tile
from hwprune.lower.cpu.winograd_transform import (
    input_transform,
    output_transform,
    transform_weights,
)
from hwprune.lower.formulas import supported
from hwprune.lower.spec import PACKED, Kernel, Workload
from hwprune.target import FLOAT32


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a 3x3 convolution for which this pays; None for all others."""
    if not applies(workload):
        return None
    choice = choose(Geometry.of(workload), context)
    if choice is None:
        return None
    plan = _Plan.of(workload, context, choice.m, choice.chunk)
    names = (emit.physical_inputs(workload, context.lanes), plan.param_shapes())
    output = workload.output.physical(context.lanes)
    func = emit.build_function("conv2d", *names, output, plan.emit)
    reason = f"F({plan.m}x{plan.m}, 3x3), {plan.chunk} tiles at a time"
    return Kernel(workload, func, "cpu.conv2d_winograd", reason, plan.pack)


def applies(workload: Workload) -> bool:
    """Whether a workload is a dense 3x3 convolution of stride 1 in the packed layout."""
    if workload.op != "conv2d" or not supported(workload.epilogue):
        return False
    if workload.output.dtype != FLOAT32:  # its transforms lose digits, of which there are few
        return False
    if workload.output.layout != PACKED or workload.inputs[0].layout != PACKED:
        return False
    g = Geometry.of(workload)
    return g.groups == 1 and (g.kernel, g.stride, g.dilation) == ((3, 3), (1, 1), (1, 1))


@dataclass(frozen=True)
class _Plan:
    workload: Workload
    context: Context
    geometry: Geometry
    m: int
    chunk: int  # tiles
    tile: tiles.Tile  # of the products: tiles x channel vectors

    @staticmethod
    def of(workload: Workload, context: Context, m: int, chunk: int) -> _Plan:
        g = Geometry.of(workload)
        g_blocks = emit.blocks(g.out_channels, context.lanes)
        rows, cols = -(-g.out_height // m), -(-g.out_width // m)
        chunk = min(chunk, rows * cols)
        tile = product_tile(chunk, g_blocks, context)
        return _Plan(workload, context, g, m, chunk, tile)

    @property
    def taps(self) -> int:
        """Products per tile and pair of channels."""
        return (self.m + 2) ** 2

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles that cover the output plane."""
        g = self.geometry
        return -(-g.out_height // self.m), -(-g.out_width // self.m)

    @property
    def in_channels(self) -> int:
        return -(-self.geometry.channels // STEP) * STEP

    @property
    def in_blocks(self) -> int:
        return emit.blocks(self.geometry.channels, self.context.lanes)

    @property
    def out_blocks(self) -> int:
        return emit.blocks(self.geometry.out_channels, self.context.lanes)

    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        lanes = self.context.lanes
        shapes: list[tuple[int, ...]] = [(self.out_blocks * self.taps * self.in_channels, lanes)]
        for spec in self.workload.params[1:]:
            shapes.append((emit.blocks(int(np.prod(spec.shape)), lanes) * lanes,))
        return tuple(shapes)

    def pack(self, params: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Weights transformed, and laid out as one stream in the order they are read."""
        g, lanes = self.geometry, self.context.lanes
        weight = transform_weights(self.m, params[0])
        full = np.zeros((self.taps, self.out_blocks * lanes, self.in_channels), np.float32)
        full[:, : g.out_channels, : g.channels] = weight
        parts = full.reshape(self.taps, self.out_blocks, lanes, self.in_channels)
        stream = []
        for part in tiles.segments(self.out_blocks, self.tile.blocks):
            for i in range(part.count):
                start = part.start + i * part.size
                piece = parts[:, start : start + part.size]
                stream.append(piece.transpose(0, 3, 1, 2).reshape(-1, lanes))
        rest = tuple(pack_channels(p, lanes) for p in params[1:])
        return (np.ascontiguousarray(np.concatenate(stream)), *rest)

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        """The whole function: bordered copy, then chunk by chunk."""
        g, lanes, m = self.geometry, self.context.lanes, self.m
        rows, cols = self.grid
        size = rows * m + 2, cols * m + 2
        source = copy_with_border(xs[0], g, size, lanes, self.context.threads)
        epilogue = Epilogue(self.workload, lanes, xs[1:], ps[1:], first_param=1)
        count = -(-rows * cols // self.chunk)
        apart = winograd_choice.apart(count, self.context.threads)
        workers = self.context.threads if apart else 1
        shape = (workers, self.taps, self.in_blocks, self.chunk, lanes)
        mine = (self.context.threads, self.taps, self.chunk, self.tile.blocks, lanes)
        scratch = T.alloc_buffer(shape, "float32")
        products = T.alloc_buffer(mine, "float32")
        with loop(g.batch) as n, emit.share_threads(count, workers) as (worker, first, some):
            with loop(some) as i:
                # The last chunk starts earlier rather than being shorter: one code for all.
                start = tirx.min((first + i) * self.chunk, rows * cols - self.chunk)
                chunk = _Chunk(self, n, start, worker, 1 if apart else self.context.threads)
                chunk.transform_inputs(source, scratch)
                chunk.multiply(scratch, ps[0], products, y, epilogue)


@dataclass(frozen=True)
class _Chunk:
    """Some tiles of one image, from their inputs to their outputs."""

    plan: _Plan
    n: Expr
    start: Expr  # first tile
    worker: Expr
    threads: int  # that share this chunk

    @property
    def size(self) -> int:
        """Tiles."""
        return self.plan.chunk

    def place(self, tile: Expr) -> tuple[Expr, Expr]:
        """First output row and column of a tile."""
        columns, m = self.plan.grid[1], self.plan.m
        return (self.start + tile) // columns * m, (self.start + tile) % columns * m

    def transform_inputs(self, source: Buffer, scratch: Buffer) -> None:
        """Tiles of (m+2)**2 inputs, transformed, into the scratch buffer."""
        plan, lanes, m = self.plan, self.plan.context.lanes, self.plan.m
        a = m + 2
        local = _local(a * a, lanes)
        with emit.split_threads(plan.in_blocks * self.size, self.threads) as (first, count):
            with loop(count) as i:
                block, tile = emit.split_index(first + i, (plan.in_blocks, self.size))
                row, col = self.place(tile)
                for j in range(a):
                    for r in range(a):
                        with T.vectorized(lanes) as lane:
                            d = [source[self.n, block, row + k, col + j, lane] for k in range(a)]
                            T.buffer_store(local, input_transform(m, d)[r], [r * a + j, lane])
                for r in range(a):
                    for j in range(a):
                        with T.vectorized(lanes) as lane:
                            d = [local[r * a + k, lane] for k in range(a)]
                            at = [self.worker, r * a + j, block, tile, lane]
                            T.buffer_store(scratch, input_transform(m, d)[j], at)

    def multiply(
        self, scratch: Buffer, weight: Buffer, products: Buffer, y: Buffer, epilogue: Epilogue
    ) -> None:
        """All products of some blocks of output channels, then their outputs; block by block."""
        plan = self.plan
        for part in tiles.segments(plan.out_blocks, plan.tile.blocks):
            with emit.share_threads(part.count, self.threads) as (helper, first, count):
                worker = self.worker + helper
                with loop(count) as i:
                    block = part.start + (first + i) * part.size
                    with loop(plan.taps) as tap:
                        for piece in tiles.segments(self.size, plan.tile.cols):
                            with loop(piece.count) as j:
                                tile = piece.start + j * piece.size
                                shape = tiles.Tile(1, piece.size, part.size)
                                at = (worker, tap, tile)
                                self._products(block, at, shape, scratch, weight, products)
                    with loop(self.size) as tile, loop(part.size) as b:
                        self._outputs(block, b, (worker, tile), products, y, epilogue)

    def _products(
        self,
        block: Expr,
        at: tuple[Expr, Expr, Expr],
        shape: tiles.Tile,
        scratch: Buffer,
        weight: Buffer,
        products: Buffer,
    ) -> None:
        """One tap of a register tile: tiles x channel vectors, reduced over the input channels."""
        plan, lanes = self.plan, self.plan.context.lanes
        worker, tap, tile = at
        acc = _local(shape.accumulators, lanes)
        with T.unroll(shape.accumulators) as i:
            emit.store_vector(acc, [i], lanes, lambda _: const(0.0))
        stream = (block * plan.taps + tap * shape.blocks) * plan.in_channels
        line = emit.line_vectors(lanes)
        lines = emit.blocks(shape.blocks, line)
        streams = winograd_choice.streams(plan.geometry, plan.m, plan.context)
        with loop(plan.in_channels // STEP) as k:
            channel = k * STEP

            def value(c: Expr, ci: Expr) -> Expr:
                at = self.worker, tap, channel // lanes, tile + c, channel % lanes + ci
                return scratch[at]

            if plan.context.held(STEP):
                value = emit.held(shape.cols, lanes, value)
            with unroll(STEP) as ci:
                if streams:
                    later = stream + (k + emit.AHEAD) * STEP * shape.blocks
                    with unroll(lines) as i:
                        emit.prefetch(weight, [later + (ci * lines + i) * line, 0], 1)
                with unroll(shape.cols) as c, unroll(shape.blocks) as b:
                    i = c * shape.blocks + b
                    with T.vectorized(lanes) as lane:
                        at = stream + (channel + ci) * shape.blocks + b
                        T.buffer_store(
                            acc, acc[i, lane] + value(c, ci) * weight[at, lane], [i, lane]
                        )
        with unroll(shape.cols) as c, unroll(shape.blocks) as b:
            emit.store_vector(
                products,
                [worker, tap, tile + c, b],
                lanes,
                lambda lane: acc[c * shape.blocks + b, lane],
            )

    def _outputs(
        self,
        first: Expr,
        b: Expr,
        at: tuple[Expr, Expr],
        products: Buffer,
        y: Buffer,
        epilogue: Epilogue,
    ) -> None:
        """The m x m outputs of a tile from its products, through the epilogue."""
        lanes, m = self.plan.context.lanes, self.plan.m
        a, g, (worker, tile) = m + 2, self.plan.geometry, at
        half, done = _local(m * a, lanes), _local(m * m, lanes)
        for j in range(a):
            for r in range(m):
                with T.vectorized(lanes) as lane:
                    p = [products[worker, k * a + j, tile, b, lane] for k in range(a)]
                    T.buffer_store(half, output_transform(m, p)[r], [r * a + j, lane])
        for r in range(m):
            for c in range(m):
                with T.vectorized(lanes) as lane:
                    p = [half[r * a + k, lane] for k in range(a)]
                    T.buffer_store(done, output_transform(m, p)[c], [r * m + c, lane])
        row, col = self.place(tile)
        nest = loop if epilogue.heavy else unroll
        with nest(m) as r, _inside(row + r, g.out_height, m):
            with nest(m) as c, _inside(col + c, g.out_width, m), T.vectorized(lanes) as lane:
                where = Position(self.n, first + b, row + r, col + c, lane)
                value = epilogue.apply(done[r * m + c, lane], where)
                T.buffer_store(y, value, [self.n, first + b, row + r, col + c, lane])


def _local(count: int, lanes: int) -> Buffer:
    return T.alloc_buffer((count, lanes), "float32", scope="local", annotations=emit.ON_STACK)


@contextmanager
def _inside(index: Expr, extent: int, m: int) -> Iterator[None]:
    """Only where the index is inside; no test where the tiles cover the extent exactly."""
    if extent % m == 0:
        yield
        return
    with T.If(index < extent), T.Then():
        yield
