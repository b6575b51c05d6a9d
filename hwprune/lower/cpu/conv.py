"""Convolution with a register tile of output pixels x channel vectors (dense, 1x1 and grouped).

Every broadcast input value is multiplied with the weights of several channel vectors, and the
results stay in registers over the whole reduction. The reduction runs over the true input
channels in steps of four, so that a width of 24 costs 24. A 1x1 convolution of stride 1 treats
the plane as one row. Padding is a copy into a bordered scratch plane.

Weights come from beyond the level-2 cache whenever a network runs. Where blocks of output
channels are the outermost loop, a chunk of their weights is used by all tiles of positions
before the next, and each of these tiles fetches a share of the next chunk. This pays where
the tiles are few. A tile of a 1x1 convolution also fetches the inputs of the tile after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

from hwprune.lower.cpu import emit, tiles, walk
from hwprune.lower.cpu.border import copy_with_border
from hwprune.lower.cpu.conv_plan import Plan
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, const, loop, unroll
from hwprune.lower.cpu.epilogue import Epilogue, Position, count_params
from hwprune.lower.cpu.fetch import Share
from hwprune.lower.cpu.walk import Place
from hwprune.lower.formulas import supported
from hwprune.lower.spec import PACKED, Kernel, Workload


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a conv2d workload that is not depthwise; None if it is not one of ours."""
    if workload.op != "conv2d" or workload.output.layout != PACKED:
        return None
    if not supported(workload.epilogue):
        return None
    plan = Plan.of(workload, context)
    names = (emit.physical_inputs(workload, context.lanes), plan.param_shapes())
    output = workload.output.physical(context.lanes)
    func = emit.build_function("conv2d", *names, output, lambda *a: _write(plan, *a))
    g, tile = plan.geometry, plan.tile
    rule = "cpu.conv2d_1x1" if g.pointwise else "cpu.conv2d_direct"
    rule = rule if g.groups == 1 else "cpu.conv2d_grouped"
    reason = f"register tile {tile.rows}x{tile.cols} pixels x {tile.blocks} vectors"
    return Kernel(workload, func, rule, reason, plan.pack)


def _write(plan: Plan, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
    """The whole function: bordered copy if there is padding, then the tiles."""
    g, context = plan.geometry, plan.context
    epilogue = Epilogue(plan.workload, context.lanes, xs[1:], ps[1:], first_param=1)
    assert count_params(plan.workload.epilogue) == len(ps) - 1
    source = xs[0]
    if any(g.padding):
        lanes = None if plan.plain else context.lanes
        source = copy_with_border(xs[0], g, g.read, lanes, context.threads)
    with loop(g.batch) as n:
        tiles_of = _Writer(plan, n, source, ps[0], y, epilogue)
        for part in plan.block_segments():
            tiles_of.part(part)


@dataclass(frozen=True)
class _Writer:
    """Writes the tiles of one image."""

    plan: Plan
    n: Expr
    source: Buffer
    weight: Buffer
    y: Buffer
    epilogue: Epilogue

    def part(self, part: tiles.Segment) -> None:
        """All tiles of some blocks of output channels, in the order that moves the least memory."""
        plan, threads = self.plan, self.plan.context.threads
        chosen = plan.order(part)
        if chosen.by_blocks:
            for index in walk.blocks(part, threads):
                self._blocks(part, index)
            return
        for place in walk.in_order(part, plan.plane_segments(), chosen, threads):
            self._tile(place, None)

    def _blocks(self, part: tiles.Segment, index: Expr) -> None:
        """All positions of one tile of blocks; the weights chunk by chunk."""
        plan = self.plan
        length = plan.chunk_steps(part)
        chunks = emit.blocks(plan.steps, length)
        if chunks == 1:
            for place, number in self._places(part, index):
                self._tile(place, self._next(part, index, 0, 1, number))
            return
        for place, _ in self._places(part, index):
            self._each(place, lambda *_: const(0.0), over=loop)
        with loop(chunks) as chunk:
            first = chunk * length
            for place, number in self._places(part, index):
                acc = self._accumulators(place.tile)
                self._load(acc, place)
                fetch = self._next(part, index, chunk, chunks, number)
                self._reduce(acc, place, first, emit.tirx.min(length, plan.steps - first), fetch)
                self._save(acc, place)
        if plan.workload.epilogue:
            for place, _ in self._places(part, index):
                self._finish(place)

    def _tile(self, place: Place, fetch: Share | None) -> None:
        """A tile from its first sum to its last, with the epilogue."""
        acc = self._accumulators(place.tile)
        with T.unroll(place.tile.accumulators) as i:
            emit.store_vector(acc, [i], self.plan.context.lanes, lambda _: const(0.0))
        self._reduce(acc, place, 0, self.plan.steps, fetch)
        self._store(acc, place)

    def _places(self, part: tiles.Segment, index: Expr) -> Iterator[tuple[Place, Expr]]:
        """Every tile of positions of one tile of blocks, with its number."""
        return walk.positions(part, index, self.plan.plane_segments())

    def _next(
        self, part: tiles.Segment, index: Expr, chunk: Expr, chunks: int, number: Expr
    ) -> Share | None:
        """Fetches the chunk after this one, a share in every tile of positions."""
        plan = self.plan
        if not plan.few_positions:
            return None
        steps = plan.chunk_steps(part) * plan.taps
        rows = steps * plan.reduction.step
        following = index * chunks + chunk + 1
        return Share(
            weight=self.weight,
            block=part.start + following // chunks * part.size,
            blocks=part.size,
            first=following % chunks * rows,
            rows=rows,
            slot=number * steps,
            slots=plan.positions * steps,
        )

    def _accumulators(self, tile: tiles.Tile) -> Buffer:
        shape = (tile.accumulators, self.plan.context.lanes)
        return emit.local(shape)

    def _reduce(
        self, acc: Buffer, place: Place, first: Expr, count: Expr, fetch: Share | None
    ) -> None:
        """Add `count` steps of the reduction from `first` on."""
        plan, tile = self.plan, place.tile
        step, lanes = plan.reduction.step, plan.context.lanes
        start = plan.reduction.start(place.block)
        with ExitStack() as nest:
            k = nest.enter_context(loop(count))
            if fetch is not None:
                for i in range(plan.taps):  # outside the loop over taps, or LLVM spills
                    fetch(k * plan.taps + i)
            if plan.fetches_inputs:
                self._fetch_inputs(place, first + k)
            dy, dx = self._taps(nest)

            def value(position: Expr, ci: Expr) -> Expr:
                row, col = place.row + position // tile.cols, place.col + position % tile.cols
                return self._read(start + (first + k) * step, ci, row, col, dy, dx)

            if plan.held:
                value = emit.held(tile.rows * tile.cols, lanes, value)
            with unroll(step) as ci, unroll(tile.rows) as r, unroll(tile.cols) as c:
                with unroll(tile.blocks) as b:
                    weight = [place.block + b, first + k, dy, dx, ci]
                    position = r * tile.cols + c
                    i = position * tile.blocks + b
                    with T.vectorized(lanes) as lane:
                        term = value(position, ci) * self.weight[(*weight, lane)]
                        T.buffer_store(acc, acc[i, lane] + term, [i, lane])

    def _fetch_inputs(self, place: Place, number: Expr) -> None:
        """A step's share of what the tile that follows reads of the same vector of channels."""
        tile, lanes, step = place.tile, self.plan.context.lanes, self.plan.reduction.step
        line, steps = emit.line_vectors(lanes), lanes // step
        share = emit.blocks(emit.blocks(tile.rows * tile.cols, line), steps)
        for i in range(share):
            position = (number % steps * share + i) * line
            row, col = place.row, place.col + tile.cols + position
            if tile.rows > 1:  # as wide as the plane
                row, col = place.row + tile.rows + position // tile.cols, position % tile.cols
            emit.prefetch(self.source, self._at(number // steps * lanes, 0, row, col, 0, 0), 1)

    def _taps(self, nest: ExitStack) -> tuple[Expr, Expr]:
        """The loops over the taps: LLVM unrolls a row of few, which pays for plain inputs only.

        There taps share the inputs they read. Elsewhere, and where LLVM orders instructions for a
        core that runs them in order, it spills, and one flat loop is safe.
        """
        kh, kw = self.plan.geometry.kernel
        if self.plan.shares_inputs:
            return nest.enter_context(loop(kh)), nest.enter_context(loop(kw))
        tap = nest.enter_context(loop(kh * kw))
        return tap // kw, tap % kw

    def _read(self, first: Expr, ci: Expr, row: Expr, col: Expr, dy: Expr, dx: Expr) -> Expr:
        """Input channel `first + ci` at an output position and a tap."""
        return self.source[tuple(self._at(first, ci, row, col, dy, dx))]

    def _at(self, first: Expr, ci: Expr, row: Expr, col: Expr, dy: Expr, dx: Expr) -> list[Expr]:
        g, lanes = self.plan.geometry, self.plan.context.lanes
        if self.plan.flat:
            h, w = col // g.width, col % g.width
        else:
            h = row * g.stride[0] + dy * g.dilation[0]
            w = col * g.stride[1] + dx * g.dilation[1]
        if self.plan.plain:
            return [self.n, first + ci, h, w]
        return [self.n, first // lanes, h, w, first % lanes + ci]

    def _store(self, acc: Buffer, place: Place) -> None:
        """Store a tile with its epilogue: at once, or where that is long in a loop of its own."""
        if self.epilogue.heavy:
            self._save(acc, place)
            self._finish(place)
            return
        self._each(place, lambda i, at: self.epilogue.apply(acc[i, at.lane], at))

    def _save(self, acc: Buffer, place: Place) -> None:
        self._each(place, lambda i, at: acc[i, at.lane])

    def _finish(self, place: Place) -> None:
        """Run the epilogue on what was stored."""
        y = self.y
        self._each(
            place,
            lambda _, at: self.epilogue.apply(y[at.n, at.block, at.h, at.w, at.lane], at),
            over=loop,
        )

    def _each(
        self,
        place: Place,
        value: Callable[[Expr, Position], Expr],
        over: type[loop] = unroll,
    ) -> None:
        """Store `value(number, position)` in every vector of a tile."""
        tile = place.tile
        with over(tile.rows) as r, over(tile.cols) as c, over(tile.blocks) as b:
            at = self._position(place, r, c, b)
            with T.vectorized(self.plan.context.lanes) as lane:
                i = (r * tile.cols + c) * tile.blocks + b
                at = replace(at, lane=lane)
                T.buffer_store(self.y, value(i, at), [at.n, at.block, at.h, at.w, lane])

    def _load(self, acc: Buffer, place: Place) -> None:
        """What earlier chunks have stored."""
        tile = place.tile
        with unroll(tile.rows) as r, unroll(tile.cols) as c, unroll(tile.blocks) as b:
            at = self._position(place, r, c, b)
            i = (r * tile.cols + c) * tile.blocks + b
            with T.vectorized(self.plan.context.lanes) as lane:
                T.buffer_store(acc, self.y[at.n, at.block, at.h, at.w, lane], [i, lane])

    def _position(self, place: Place, r: Expr, c: Expr, b: Expr) -> Position:
        row, col = place.row + r, place.col + c
        if self.plan.flat:
            width = self.plan.geometry.out_width
            row, col = col // width, col % width
        return Position(self.n, place.block + b, row, col, 0)
