"""Depthwise convolution: one vector of channels at a time, a register tile along the output row.

Rows outside the image are skipped by the bounds of the loop over taps; columns outside are left
out when the tiles at the two ends of a row are written, so nothing is copied for padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwprune.lower.cpu import emit, tiles
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, const, loop, tirx
from hwprune.lower.cpu.epilogue import Epilogue, Position, pack_channels
from hwprune.lower.cpu.geometry import Geometry
from hwprune.lower.formulas import supported
from hwprune.lower.spec import PACKED, Kernel, Workload

FEWEST = 4  # output columns in registers, however wide the kernel is

Read = Callable[[Expr, Expr, Expr], Expr]  # the image at a row, a column and a lane


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a depthwise conv2d (one input and one output channel a group), or None."""
    if workload.op != "conv2d" or workload.inputs[0].layout != PACKED:
        return None
    g = Geometry.of(workload)
    if g.group_in != 1 or g.out_channels != g.channels or g.channels == 1:
        return None
    if not supported(workload.epilogue):
        return None
    plan = Plan(workload, context, g)
    func = emit.build_function(
        "depthwise",
        emit.physical_inputs(workload, context.lanes),
        plan.param_shapes(),
        workload.output.physical(context.lanes),
        plan.emit,
    )
    reason = f"one channel vector, {plan.columns} columns in registers"
    return Kernel(workload, func, "cpu.depthwise", reason, plan.pack)


@dataclass(frozen=True)
class Plan:
    """Tiles and packed weights of a depthwise convolution.

    `bordered`: its source holds the padding's columns, so that no tile meets an edge.
    """

    workload: Workload
    context: Context
    geometry: Geometry
    bordered: bool = False

    @property
    def columns(self) -> int:
        """Output columns in registers: as many as leave room for the taps of a row."""
        kw = self.geometry.kernel[1]
        most = max((self.context.registers - 2 * kw - 4) // 2, FEWEST)
        ow = self.geometry.out_width
        return -(-ow // -(-ow // most))

    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the packed parameters."""
        lanes, (kh, kw) = self.context.lanes, self.geometry.kernel
        blocks = emit.blocks(self.geometry.channels, lanes)
        shapes: list[tuple[int, ...]] = [(blocks, kh, kw, lanes)]
        for spec in self.workload.params[1:]:
            shapes.append((emit.blocks(int(np.prod(spec.shape)), lanes) * lanes,))
        return tuple(shapes)

    def pack(self, params: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """(C, 1, kh, kw) -> (C / lanes, kh, kw, lanes), zero-padded."""
        lanes, (kh, kw) = self.context.lanes, self.geometry.kernel
        c = self.geometry.channels
        weight = np.zeros((emit.blocks(c, lanes) * lanes, kh, kw), np.float32)
        weight[:c] = params[0][:, 0]
        packed = weight.reshape(-1, lanes, kh, kw).transpose(0, 2, 3, 1)
        return (np.ascontiguousarray(packed), *(pack_channels(p, lanes) for p in params[1:]))

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        """The whole function."""
        g, lanes = self.geometry, self.context.lanes
        epilogue = Epilogue(self.workload, lanes, xs[1:], ps[1:], first_param=1)
        blocks = emit.blocks(g.channels, lanes)
        extents = (g.batch, blocks, g.out_height)
        total = g.batch * blocks * g.out_height
        with emit.split_threads(total, self.context.threads) as (first, count):
            acc = self.accumulators()
            with loop(count) as i:
                n, block, row = emit.split_index(first + i, extents)

                def read(h: Expr, w: Expr, lane: Expr) -> Expr:
                    return xs[0][n, block, h, w, lane]

                self.row((n, block, row), read, ps[0], acc, epilogue, y)

    def accumulators(self) -> Buffer:
        """The register tile."""
        shape = (self.columns, self.context.lanes)
        return emit.local(shape)

    def row(
        self,
        at: tuple[Expr, Expr, Expr],
        read: Read,
        weight: Buffer,
        acc: Buffer,
        epilogue: Epilogue,
        y: Buffer,
    ) -> None:
        """One output row of one vector of channels, at (image, vector, row)."""
        n, block, row = at
        lanes = self.context.lanes
        for segment, edge in self._columns():
            with loop(segment.count) as ci:
                col = segment.start + ci * segment.size
                self._tile(block, row, col, segment, edge, read, weight, acc)
                for c in range(segment.size):
                    with T.vectorized(lanes) as lane:
                        value = epilogue.apply(acc[c, lane], Position(n, block, row, col + c, lane))
                        T.buffer_store(y, value, [n, block, row, col + c, lane])

    def _columns(self) -> list[tuple[tiles.Segment, bool]]:
        """Tiles of a row; True for those that touch a border and stand alone."""
        g, size = self.geometry, self.columns
        whole: list[tuple[tiles.Segment, bool]] = []
        starts = [
            (s.start + i * s.size, s.size)
            for s in tiles.segments(g.out_width, size)
            for i in range(s.count)
        ]
        for start, width in starts:
            edge = self._touches(start, width)
            last = whole[-1] if whole else None
            if last and not edge and not last[1] and last[0].size == width:
                whole[-1] = (tiles.Segment(last[0].start, last[0].count + 1, width), False)
            else:
                whole.append((tiles.Segment(start, 1, width), edge))
        return whole

    def _touches(self, start: int, width: int) -> bool:
        if self.bordered:
            return False
        g = self.geometry
        first = start * g.stride[1] - g.padding[1]
        reach = (g.kernel[1] - 1) * g.dilation[1]
        last = (start + width - 1) * g.stride[1] - g.padding[1] + reach
        return first < 0 or last >= g.width

    def _tile(
        self,
        block: Expr,
        row: Expr,
        col: Expr,
        segment: tiles.Segment,
        edge: bool,
        read: Read,
        weight: Buffer,
        acc: Buffer,
    ) -> None:
        g, lanes = self.geometry, self.context.lanes
        kw, (top, left, _, _) = g.kernel[1], g.padding
        for c in range(segment.size):
            emit.store_vector(acc, [c], lanes, lambda _: const(0.0))
        origin = row * g.stride[0] - top
        low, high = self.row_bounds(origin)
        with T.serial(high - low) as step:
            dy = low + step
            h = origin + dy * g.dilation[0]
            for dx in range(kw):
                for c in range(segment.size):
                    offset = c * g.stride[1] + dx * g.dilation[1] - left
                    if edge and not 0 <= segment.start * g.stride[1] + offset < g.width:
                        continue
                    w = col * g.stride[1] + offset
                    with T.vectorized(lanes) as lane:
                        product = read(h, w, lane) * weight[block, dy, dx, lane]
                        T.buffer_store(acc, acc[c, lane] + product, [c, lane])

    def row_bounds(self, origin: Expr) -> tuple[Expr, Expr]:
        """First and one past the last tap whose row lies inside the image."""
        g = self.geometry
        d, kh = g.dilation[0], g.kernel[0]
        low = tirx.max(0, (d - 1 - origin) // d) if g.padding[0] else 0
        if (
            not g.padding[2]
            and (g.out_height - 1) * g.stride[0] - g.padding[0] + (kh - 1) * d < g.height
        ):
            return low, kh
        high = tirx.min(kh, (g.height - 1 - origin) // d + 1)
        return low, tirx.max(high, low)
