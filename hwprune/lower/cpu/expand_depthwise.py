"""Expansion and depthwise convolution in one pass: a few rows of the wide tensor at a time.

Some vectors of wide channels are expanded row by row into a ring of as many rows as the depthwise
kernel spans, and every output row is written as soon as its last row is there. The ring stays in
the nearest caches, where the whole wide tensor would go through level 3. Its columns outside the
image are zeros, written once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from hwprune.lower.cpu import conv_plan, depthwise, emit, tiles
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, const, loop, tirx, unroll
from hwprune.lower.cpu.epilogue import Epilogue, Position
from hwprune.lower.cpu.geometry import Geometry
from hwprune.lower.cpu.product import holds_rows, product
from hwprune.lower.expansion import EXPAND_DEPTHWISE, parts
from hwprune.lower.formulas import supported
from hwprune.lower.spec import Kernel, Workload


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of an expand_depthwise workload, or None."""
    if workload.op != EXPAND_DEPTHWISE:
        return None
    first, second = parts(workload)
    if not supported(first.epilogue) or not supported(second.epilogue):
        return None
    if _copied(Geometry.of(second)) == 0:
        return None  # nothing but padding is read
    plan = _Plan.of(workload, context)
    func = emit.build_function(
        EXPAND_DEPTHWISE,
        emit.physical_inputs(workload, context.lanes),
        plan.param_shapes(),
        workload.output.physical(context.lanes),
        plan.emit,
    )
    tile = plan.tile
    reason = f"register tile {tile.cols} pixels x {tile.blocks} vectors, ring of {plan.rows} rows"
    return Kernel(workload, func, f"cpu.{EXPAND_DEPTHWISE}", reason, plan.pack)


BANDS = 2  # a thread: each begins with rows that the one before has expanded too

Element = Callable[[Expr, Expr, Expr], Expr]  # by pixel and vector of a tile, and lane


@dataclass(frozen=True)
class _Plan:
    context: Context
    up: conv_plan.Plan
    down: depthwise.Plan

    @staticmethod
    def of(workload: Workload, context: Context) -> _Plan:
        first, second = parts(workload)
        g = Geometry.of(second)
        down = depthwise.Plan(second, context, g, bordered=True)
        blocks = emit.blocks(g.channels, context.lanes)
        tile = tiles.choose(
            1,
            _copied(g),
            blocks,
            context.registers,
            one_row=True,
            pipes=context.pipes,
            held=context.held(context.step),
        )
        return _Plan(context, replace(conv_plan.Plan.of(first, context), tile=tile), down)

    @property
    def tile(self) -> tiles.Tile:
        """The register tile of the expansion: pixels of a row x vectors of wide channels."""
        return self.up.tile

    @property
    def rows(self) -> int:
        """Rows that the depthwise kernel spans."""
        g = self.down.geometry
        return (g.kernel[0] - 1) * g.dilation[0] + 1

    @property
    def depth(self) -> int:
        """Channels of the input, in whole steps."""
        return self.up.reduction.extent

    @property
    def _up_params(self) -> int:
        return len(self.up.workload.params)

    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the packed parameters: the expansion's, then the depthwise convolution's."""
        weight = (self.up.out_blocks, self.depth, self.context.lanes)
        return (weight, *self.up.param_shapes()[1:], *self.down.param_shapes())

    def pack(self, params: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """As both rules pack theirs; the expansion's steps are merged with their channels."""
        weight, *rest = self.up.pack(params[: self._up_params])
        weight = weight.reshape(self.param_shapes()[0])
        return (weight, *rest, *self.down.pack(params[self._up_params :]))

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        """The whole function: every thread some output rows, through all vectors of channels."""
        g, lanes, split = self.down.geometry, self.context.lanes, self._up_params
        up = Epilogue(self.up.workload, lanes, [], ps[1:split], first_param=1)
        down = Epilogue(self.down.workload, lanes, xs[1:], ps[split + 1 :], first_param=1)
        with emit.split_threads(g.out_height, self.context.threads, BANDS) as (first, count):
            shape = (self.rows, self.tile.blocks, g.read[1], lanes)
            ring = T.alloc_buffer(shape, emit.real())
            acc = self.down.accumulators()
            self._border(ring)
            with loop(g.batch) as n:
                for part in self.up.block_segments():
                    with loop(part.count) as i:
                        block = part.start + i * part.size
                        band = _Band(self, n, block, part.size, xs[0], (ps[0], up), ring)
                        band.write(first, count, (ps[split], down), acc, y)

    def _border(self, ring: Buffer) -> None:
        """Zeros in the columns outside the image."""
        g, lanes = self.down.geometry, self.context.lanes
        left, width = min(g.padding[1], g.read[1]), g.read[1]
        right = left + _copied(g)
        for start, count in ((0, left), (right, width - right)):
            if count:
                with loop(self.rows) as row, loop(self.tile.blocks) as b, loop(count) as w:
                    at = [row, b, start + w]
                    emit.store_vector(ring, at, lanes, lambda _: const(0.0))


Weights = tuple[Buffer, Epilogue]  # of a convolution, and what follows it


@dataclass(frozen=True)
class _Band:
    """Some vectors of wide channels of one image, from `block` on."""

    plan: _Plan
    n: Expr
    block: Expr
    blocks: int
    x: Buffer
    up: Weights
    ring: Buffer

    def write(self, first: Expr, count: Expr, down: Weights, acc: Buffer, y: Buffer) -> None:
        """`count` output rows from `first` on, each after the wide rows that it adds."""
        g, rows = self.plan.down.geometry, self.plan.rows
        with T.serial(count) as i:
            row = first + i
            origin = row * g.stride[0] - g.padding[0]
            known = tirx.Select(i > 0, origin - g.stride[0] + rows, origin)
            low = tirx.max(tirx.max(origin, known), 0)
            high = tirx.max(tirx.min(origin + rows, g.height), low)
            with T.serial(high - low) as j:
                self._expand(low + j)
            with loop(self.blocks) as b:
                at = self.n, self.block + b, row
                self.plan.down.row(at, self._reader(b), down[0], acc, down[1], y)

    def _reader(self, b: Expr) -> depthwise.Read:
        """The wide image in the ring."""
        left = self.plan.down.geometry.padding[1]
        return lambda h, w, lane: self.ring[h % self.plan.rows, b, w + left, lane]

    def _expand(self, h: Expr) -> None:
        """A row of the wide image."""
        for part in tiles.segments(_copied(self.plan.down.geometry), self.plan.tile.cols):
            with loop(part.count) as i:
                self._tile(h, part.start + i * part.size, tiles.Tile(1, part.size, self.blocks))

    def _tile(self, h: Expr, col: Expr, tile: tiles.Tile) -> None:
        """Some pixels of a row, with the epilogue: where that is long, in a loop of its own."""
        weight, epilogue = self.up
        lanes, read = self.plan.context.lanes, self._reader

        def left(r: Expr, k: Expr, j: Expr) -> Expr:
            return self.x[self.n, k // lanes, h, col + r, k % lanes + j]

        context = self.plan.context
        held = holds_rows(self.plan.depth, context)
        acc = product(tile, self.plan.depth, left, weight, self.block, held=held, step=context.step)

        def sums(c: Expr, b: Expr, lane: Expr) -> Expr:
            return acc[c * tile.blocks + b, lane]

        def finished(value: Element) -> Element:
            def done(c: Expr, b: Expr, lane: Expr) -> Expr:
                at = Position(self.n, self.block + b, h, col + c, lane)
                return epilogue.apply(value(c, b, lane), at)

            return done

        if epilogue.heavy:
            self._store(h, col, tile, sums)
            stored = finished(lambda c, b, lane: read(b)(h, col + c, lane))
            self._store(h, col, tile, stored, over=loop)
        else:
            self._store(h, col, tile, finished(sums))

    def _store(
        self, h: Expr, col: Expr, tile: tiles.Tile, value: Element, over: type[loop] = unroll
    ) -> None:
        """Store `value(pixel, vector, lane)` of a tile in the ring."""
        slot, start = h % self.plan.rows, self.plan.down.geometry.padding[1] + col
        with over(tile.cols) as c, over(tile.blocks) as b:
            with T.vectorized(self.plan.context.lanes) as lane:
                T.buffer_store(self.ring, value(c, b, lane), [slot, b, start + c, lane])


def _copied(g: Geometry) -> int:
    """Columns of the image that some tap reads."""
    return min(g.width, g.read[1] - min(g.padding[1], g.read[1]))
