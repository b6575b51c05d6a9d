"""What a convolution's rule decides: register tile, order of loops, chunks, packed weights.

In: a conv2d `Workload` and the target's `Context`. Out: a `Plan`, from which `conv` writes TIR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from hwprune.lower.cpu import emit, order, tiles
from hwprune.lower.cpu.emit import Context
from hwprune.lower.cpu.epilogue import pack_channels
from hwprune.lower.cpu.geometry import Geometry, Reduction
from hwprune.lower.cpu.order import Order
from hwprune.lower.spec import PLAIN, Workload

CHUNK_SHARE = 0.5  # of the level-1 cache that a chunk of weights may fill
FEW = 8  # tiles of positions for which chunks of weights, fetched early, pay
MANY = 64  # for which they do where the input leaves no room in the cache for weights


@dataclass(frozen=True)
class Plan:
    """What the rule decides about a workload: tiles, the order of the loops, packed weights."""

    workload: Workload
    context: Context
    geometry: Geometry
    reduction: Reduction
    tile: tiles.Tile

    @staticmethod
    def of(workload: Workload, context: Context) -> Plan:
        """The plan of a conv2d workload."""
        g = Geometry.of(workload)
        plain = workload.inputs[0].layout == PLAIN
        reduction = Reduction(g, context.lanes, 1 if plain else context.step)
        rows, cols = (
            (1, g.out_height * g.out_width)
            if g.pointwise and not plain
            else (g.out_height, g.out_width)
        )
        blocks = emit.blocks(g.out_channels, context.lanes)
        registers, pipes = context.registers, context.pipes
        if plain:  # LLVM keeps inputs that taps share, and every one is a load of its own
            registers = registers * (13 if pipes.in_order else 11) // 16
            pipes = tiles.WIDE
        tile = tiles.choose(
            rows,
            cols,
            1 if g.groups > 1 else blocks,
            registers,
            one_row=rows == 1,
            pipes=pipes,
            held=context.held(reduction.step),
        )
        return Plan(workload, context, g, reduction, tile)

    @property
    def plain(self) -> bool:
        """The input is not packed: an image."""
        return self.workload.inputs[0].layout == PLAIN

    @property
    def shares_inputs(self) -> bool:
        """Whether the taps of a row are unrolled, so that they share the inputs they read."""
        return self.plain and not self.context.pipes.in_order

    @property
    def flat(self) -> bool:
        """The plane is handled as one row of pixels."""
        return self.geometry.pointwise and not self.plain

    @property
    def held(self) -> bool:
        """Whether a step's inputs are a vector a position, of which multiply-adds take a lane."""
        return self.context.held(self.reduction.step) > 0

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.geometry.kernel)

    @property
    def steps(self) -> int:
        """Steps of the reduction over input channels."""
        return self.reduction.extent // self.reduction.step

    @property
    def few_positions(self) -> bool:
        """Whether reading the weights takes time that so few tiles of positions must share."""
        if self.plain or self.geometry.groups > 1:
            return False
        return self.positions <= (MANY if self._crowded else FEW)

    @property
    def fetches_inputs(self) -> bool:
        """Whether a tile of a 1x1 convolution brings the inputs of the next early.

        Its vectors of channels lie a plane apart: hardware follows no stream of a few cache lines.
        """
        g = self.geometry
        moves = g.kernel == (1, 1) and g.groups == 1 and not any(g.padding)
        return moves and not self.plain and not self.held

    @property
    def _crowded(self) -> bool:
        """Whether the input and the weights of a tile of blocks do not stay in the cache."""
        weights = self.tile.blocks * self.context.lanes * self.reduction.extent * self.taps
        read = math.prod(self.workload.inputs[0].shape) // self.geometry.batch
        return (
            self.context.item_bytes * (weights + read) > order.CACHE_SHARE * self.context.l2_bytes
        )

    def chunk_steps(self, part: tiles.Segment) -> int:
        """Steps whose weights for a tile of blocks are used by all positions before the next."""
        if not self.few_positions or self.positions == 1:
            return self.steps
        lanes, step = self.context.lanes, self.reduction.step
        step_bytes = self.context.item_bytes * part.size * lanes * step * self.taps
        whole = lanes // step  # steps of an input vector
        longest = max(int(CHUNK_SHARE * self.context.l1_bytes) // step_bytes // whole, 1) * whole
        chunks = emit.blocks(self.steps, longest)
        return emit.blocks(emit.blocks(self.steps, chunks), whole) * whole

    @property
    def out_blocks(self) -> int:
        """Vectors of output channels."""
        return emit.blocks(self.geometry.out_channels, self.context.lanes)

    def plane_segments(self) -> tuple[tuple[tiles.Segment, tiles.Segment], ...]:
        """Rows x columns of tiles that cover the output plane."""
        g = self.geometry
        rows, cols = (1, g.out_height * g.out_width) if self.flat else (g.out_height, g.out_width)
        parts = (tiles.segments(rows, self.tile.rows), tiles.segments(cols, self.tile.cols))
        return tuple(product(*parts))

    @property
    def positions(self) -> int:
        """Tiles that cover the output plane."""
        return sum(rows.count * cols.count for rows, cols in self.plane_segments())

    def order(self, part: tiles.Segment) -> Order:
        """What is the outer loop, and what the threads share."""
        g = self.geometry
        planes = self.plane_segments()
        return order.choose(
            order.Work(
                block_tiles=part.count,
                row_tiles=max(r.count for r, _ in planes),
                col_tiles=max(c.count for _, c in planes),
                weight_bytes=self.context.item_bytes * int(np.prod(self.param_shapes()[0])),
                input_bytes=self.context.item_bytes * g.channels * g.height * g.width,
                grouped=g.groups > 1,
            ),
            self.context,
        )

    def block_segments(self) -> tuple[tiles.Segment, ...]:
        """Tiles of blocks that cover the output channels."""
        return tiles.segments(self.out_blocks, self.tile.blocks)

    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the packed parameters."""
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
