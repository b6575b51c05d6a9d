"""Convolution with a register tile of output pixels x channel vectors (dense, 1x1 and grouped).

Every broadcast input value is multiplied with the weights of several channel vectors, and the
results stay in registers over the whole reduction. The reduction runs over the true input
channels in steps of four, so that a width of 24 costs 24. A 1x1 convolution of stride 1 treats
the plane as one row. Padding is a copy into a bordered scratch plane.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product

import numpy as np

from hwprune.lower.cpu import emit, order, tiles
from hwprune.lower.cpu.border import copy_with_border
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, const, loop, unroll
from hwprune.lower.cpu.epilogue import (
    Epilogue,
    Position,
    count_params,
    pack_channels,
    supported,
)
from hwprune.lower.cpu.geometry import Geometry, Reduction
from hwprune.lower.cpu.order import Order
from hwprune.lower.spec import PACKED, PLAIN, Kernel, Workload

STEP = 4  # input channels per unrolled reduction step
FEW = 4  # tiles of positions for which fetching weights early pays


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a conv2d workload that is not depthwise; None if it is not one of ours."""
    if workload.op != "conv2d" or workload.output.layout != PACKED:
        return None
    if not supported(workload.epilogue):
        return None
    plan = _Plan.of(workload, context)
    names = (emit.physical_inputs(workload, context.lanes), plan.param_shapes())
    output = workload.output.physical(context.lanes)
    func = emit.build_function("conv2d", *names, output, plan.emit)
    g, tile = plan.geometry, plan.tile
    rule = "cpu.conv2d_1x1" if g.pointwise else "cpu.conv2d_direct"
    rule = rule if g.groups == 1 else "cpu.conv2d_grouped"
    reason = f"register tile {tile.rows}x{tile.cols} pixels x {tile.blocks} vectors"
    return Kernel(workload, func, rule, reason, plan.pack)


@dataclass(frozen=True)
class _Plan:
    workload: Workload
    context: Context
    geometry: Geometry
    reduction: Reduction
    tile: tiles.Tile

    @staticmethod
    def of(workload: Workload, context: Context) -> _Plan:
        g = Geometry.of(workload)
        plain = workload.inputs[0].layout == PLAIN
        reduction = Reduction(g, context.lanes, 1 if plain else STEP)
        rows, cols = (
            (1, g.out_height * g.out_width)
            if g.pointwise and not plain
            else (g.out_height, g.out_width)
        )
        blocks = emit.blocks(g.out_channels, context.lanes)
        # LLVM unrolls the few taps of a plain row, and keeps the inputs that they share.
        shared = plain and g.kernel[1] <= 3
        registers = context.registers // 2 + 4 if shared else context.registers
        tile = tiles.choose(rows, cols, 1 if g.groups > 1 else blocks, registers, one_row=rows == 1)
        return _Plan(workload, context, g, reduction, tile)

    @property
    def flat(self) -> bool:
        """The plane is handled as one row of pixels."""
        return self.geometry.pointwise and self.workload.inputs[0].layout == PACKED

    @property
    def out_blocks(self) -> int:
        return emit.blocks(self.geometry.out_channels, self.context.lanes)

    def plane_segments(self) -> tuple[tuple[tiles.Segment, tiles.Segment], ...]:
        """Rows x columns of tiles that cover the output plane."""
        g = self.geometry
        rows, cols = (1, g.out_height * g.out_width) if self.flat else (g.out_height, g.out_width)
        parts = (tiles.segments(rows, self.tile.rows), tiles.segments(cols, self.tile.cols))
        return tuple(product(*parts))

    @property
    def streams(self) -> bool:
        """Whether weights come from beyond the level-2 cache, and for few tiles of positions."""
        tiles_of_positions = sum(r.count * c.count for r, c in self.plane_segments())
        weight_bytes = 4 * int(np.prod(self.param_shapes()[0]))
        return weight_bytes > self.context.l2_bytes and tiles_of_positions <= FEW

    def order(self, part: tiles.Segment) -> Order:
        """What is the outer loop, and what the threads share."""
        g = self.geometry
        planes = self.plane_segments()
        return order.choose(
            order.Work(
                block_tiles=part.count,
                row_tiles=max(r.count for r, _ in planes),
                col_tiles=max(c.count for _, c in planes),
                weight_bytes=4 * int(np.prod(self.param_shapes()[0])),
                input_bytes=4 * g.channels * g.height * g.width,
                grouped=g.groups > 1,
            ),
            self.context,
        )

    def block_segments(self) -> tuple[tiles.Segment, ...]:
        return tiles.segments(self.out_blocks, self.tile.blocks)

    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        lanes = self.context.lanes
        kh, kw = self.geometry.kernel
        step = self.reduction.step
        weight = (self.out_blocks, self.reduction.extent // step, kh, kw, step, lanes)
        shapes: list[tuple[int, ...]] = [weight]
        for spec in self.workload.params[1:]:
            shapes.append((emit.blocks(int(np.prod(spec.shape)), lanes) * lanes,))
        return tuple(shapes)

    def pack(self, params: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Weights in the order in which the loops read them; per-channel vectors padded."""
        g, lanes = self.geometry, self.context.lanes
        kh, kw = g.kernel
        dense = self._dense_weight(np.asarray(params[0], np.float32))
        steps = self.reduction.extent // self.reduction.step
        packed = dense.reshape(self.out_blocks, lanes, steps, self.reduction.step, kh, kw)
        packed = packed.transpose(0, 2, 4, 5, 3, 1)
        rest = tuple(pack_channels(p, lanes) for p in params[1:])
        return (np.ascontiguousarray(packed), *rest)

    def _dense_weight(self, weight: np.ndarray) -> np.ndarray:
        """(O, I / groups, kh, kw) -> (padded O, extent, kh, kw), zero where unconnected."""
        g, lanes = self.geometry, self.context.lanes
        dense = np.zeros((self.out_blocks * lanes, self.reduction.extent, *g.kernel), np.float32)
        if g.groups == 1:
            dense[: g.out_channels, : g.channels] = weight
            return dense
        per_group = g.out_channels // g.groups
        for o in range(g.out_channels):
            offset = o // per_group * g.group_in - int(self.reduction.start(o // lanes))
            dense[o, offset : offset + g.group_in] = weight[o]
        return dense

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        """The whole function: bordered copy if there is padding, then the tiles."""
        g = self.geometry
        epilogue = Epilogue(self.workload, self.context.lanes, xs[1:], ps[1:], first_param=1)
        assert count_params(self.workload.epilogue) == len(ps) - 1
        source = self._bordered(xs[0]) if any(g.padding) else xs[0]
        with loop(g.batch) as n:
            for part in self.block_segments():
                self._part(n, part, source, ps[0], y, epilogue)

    def _bordered(self, x: Buffer) -> Buffer:
        plain = self.workload.inputs[0].layout == PLAIN
        lanes, g = None if plain else self.context.lanes, self.geometry
        return copy_with_border(x, g, g.read, lanes, self.context.threads)

    def _part(
        self,
        n: Expr,
        part: tiles.Segment,
        source: Buffer,
        weight: Buffer,
        y: Buffer,
        epilogue: Epilogue,
    ) -> None:
        """All tiles of some blocks of output channels, in the order that moves the least memory."""
        threads = self.context.threads
        planes = self.plane_segments()
        chosen = self.order(part)
        for rows, cols in planes:
            shape = tiles.Tile(rows.size, cols.size, part.size)
            with ExitStack() as stack:
                mine: dict[str, tuple[Expr, Expr]] = {
                    "block": (0, part.count),
                    "row": (0, rows.count),
                    "col": (0, cols.count),
                }
                count = mine[chosen.axis][1]
                mine[chosen.axis] = stack.enter_context(emit.split_threads(count, threads))
                at = {k: mine[k][0] + stack.enter_context(loop(mine[k][1])) for k in chosen.loops}
                block = part.start + at["block"] * part.size
                row = rows.start + at["row"] * rows.size
                col = cols.start + at["col"] * cols.size
                self._tile(n, block, row, col, shape, source, weight, y, epilogue)

    def _tile(
        self,
        n: Expr,
        block: Expr,
        row: Expr,
        col: Expr,
        tile: tiles.Tile,
        source: Buffer,
        weight: Buffer,
        y: Buffer,
        epilogue: Epilogue,
    ) -> None:
        """Zero the accumulators, run the reduction, store."""
        acc = T.alloc_buffer(
            (tile.accumulators, self.context.lanes),
            "float32",
            scope="local",
            annotations=emit.ON_STACK,
        )
        lanes, (kh, kw) = self.context.lanes, self.geometry.kernel
        step, extent = self.reduction.step, self.reduction.extent
        read = self._reader(n, source)
        start = self.reduction.start(block)
        with T.unroll(tile.accumulators) as i:
            emit.store_vector(acc, [i], lanes, lambda _: const(0.0))
        streams = self.streams
        with loop(extent // step) as k, loop(kh) as dy, loop(kw) as dx, unroll(step) as ci:
            if streams:
                with unroll(tile.blocks) as b:
                    emit.prefetch(weight, [block + b, k + emit.AHEAD, dy, dx, ci, 0])
            with unroll(tile.rows) as r, unroll(tile.cols) as c, unroll(tile.blocks) as b:
                value = read(start + k * step, ci, row + r, col + c, dy, dx)
                i = (r * tile.cols + c) * tile.blocks + b
                with T.vectorized(lanes) as lane:
                    term = value * weight[block + b, k, dy, dx, ci, lane]
                    T.buffer_store(acc, acc[i, lane] + term, [i, lane])
        self._store(n, block, row, col, tile, acc, y, epilogue)

    def _reader(self, n: Expr, source: Buffer) -> Callable[..., Expr]:
        """Reads input channel `first + ci` at an output position and a tap."""
        g, lanes = self.geometry, self.context.lanes
        plain = self.workload.inputs[0].layout == PLAIN

        def read(first: Expr, ci: int, row: Expr, col: Expr, dy: Expr, dx: Expr) -> Expr:
            if self.flat:
                return source[n, first // lanes, col // g.width, col % g.width, first % lanes + ci]
            h = row * g.stride[0] + dy * g.dilation[0]
            w = col * g.stride[1] + dx * g.dilation[1]
            if plain:
                return source[n, first + ci, h, w]
            return source[n, first // lanes, h, w, first % lanes + ci]

        return read

    def _store(
        self,
        n: Expr,
        block: Expr,
        row: Expr,
        col: Expr,
        tile: tiles.Tile,
        acc: Buffer,
        y: Buffer,
        epilogue: Epilogue,
    ) -> None:
        g, lanes = self.geometry, self.context.lanes

        def place(r: Expr, c: Expr) -> tuple[Expr, Expr]:
            if self.flat:
                return (col + c) // g.out_width, (col + c) % g.out_width
            return row + r, col + c

        later = epilogue.heavy
        with unroll(tile.rows) as r, unroll(tile.cols) as c, unroll(tile.blocks) as b:
            h, w = place(r, c)
            i = (r * tile.cols + c) * tile.blocks + b
            with T.vectorized(lanes) as lane:
                at = Position(n, block + b, h, w, lane)
                value = acc[i, lane] if later else epilogue.apply(acc[i, lane], at)
                T.buffer_store(y, value, [n, block + b, h, w, lane])
        if later:
            with loop(tile.blocks) as b, loop(tile.rows) as r, loop(tile.cols) as c:
                h, w = place(r, c)
                with T.vectorized(lanes) as lane:
                    at = Position(n, block + b, h, w, lane)
                    value = epilogue.apply(y[n, block + b, h, w, lane], at)
                    T.buffer_store(y, value, [n, block + b, h, w, lane])
