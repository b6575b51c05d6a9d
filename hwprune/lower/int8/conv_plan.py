"""What the rule of int8 convolutions decides: register tile, order of loops, packed weights.

In: an operator, its tensors, the target's `Context`. Out: a `Plan`, from which `conv` writes TIR.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import prod

import numpy as np

from hwprune.lower.cpu import emit as cpu
from hwprune.lower.cpu import order, tiles
from hwprune.lower.cpu.context import Context
from hwprune.lower.cpu.geometry import Geometry, Reduction
from hwprune.lower.int8.border import Plane
from hwprune.lower.int8.layout import padded
from hwprune.lower.int8.machine import BYTES, Machine
from hwprune.lower.int8.scaling import filled, zero_point
from hwprune.quantize.graph import Conv2d, IntegerTensor

WORDS = 4  # of an unrolled step
SPARE = 1  # registers for products before they are added


@dataclass(frozen=True, eq=False)
class Plan:
    """Tiles, the order of the loops, packed weights of one convolution.

    `words` are those of an unrolled step; with `held` a step's inputs are one vector a position, of
    which multiply-adds take a lane.
    """

    op: Conv2d
    machine: Machine
    context: Context
    geometry: Geometry
    reduction: Reduction
    words: int
    held: bool
    tile: tiles.Tile
    plane: Plane
    zero_point: int

    @staticmethod
    def of(
        op: Conv2d, x: IntegerTensor, y: IntegerTensor, machine: Machine, context: Context
    ) -> Plan:
        """The plan of a convolution that is not depthwise."""
        g, pitch = _geometry(op, x, y), padded(x.shape[3])
        held = bool(context.held(WORDS)) and pitch % (WORDS * machine.word) == 0
        step = machine.word * (WORDS if held else 1)
        reduction = Reduction(g, machine.lanes, step)
        blocks = cpu.blocks(g.out_channels, machine.lanes)
        apart = machine.unit == "vpmaddwd"  # products and their sum: LLVM would add products first
        spare = SPARE if apart else 0
        tile = tiles.choose(
            g.out_height,
            g.out_width,
            1 if g.groups > 1 else blocks,
            context.registers - spare,
            one_row=g.out_height == 1,
            pipes=context.pipes,
            held=WORDS if held else 0,
        )
        plane = Plane(g.height, g.width, pitch, (g.padding[0], g.padding[1]), g.read)
        words = WORDS if held else cpu.step(reduction.extent // step, 1 if apart else WORDS)
        zero = zero_point(x, machine)
        return Plan(op, machine, context, g, reduction, words, held, tile, plane, zero)

    @property
    def row_words(self) -> int:
        """Words of inputs at a tap."""
        return self.reduction.extent // self.machine.word

    @property
    def steps(self) -> int:
        """Steps at a tap."""
        return self.row_words // self.words

    @property
    def blocks(self) -> int:
        """Vectors of output channels."""
        return cpu.blocks(self.geometry.out_channels, self.machine.lanes)

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return prod(self.geometry.kernel)

    @property
    def vector(self) -> int:
        """Weights of a vector."""
        return self.machine.lanes * self.machine.word

    def plane_segments(self) -> tuple[tuple[tiles.Segment, tiles.Segment], ...]:
        """Rows x columns of tiles that cover the output plane."""
        g = self.geometry
        return tuple(
            product(
                tiles.segments(g.out_height, self.tile.rows),
                tiles.segments(g.out_width, self.tile.cols),
            )
        )

    def block_segments(self) -> tuple[tiles.Segment, ...]:
        """Tiles of blocks that cover the output channels."""
        return tiles.segments(self.blocks, self.tile.blocks)

    def order(self, part: tiles.Segment) -> order.Order:
        """What is the outer loop, and what the threads share."""
        planes, item = self.plane_segments(), 1 if self.machine.word == BYTES else 2
        work = order.Work(
            block_tiles=part.count,
            row_tiles=max(rows.count for rows, _ in planes),
            col_tiles=max(cols.count for _, cols in planes),
            weight_bytes=item * self.blocks * self.taps * self.row_words * self.vector,
            input_bytes=item * prod(self.plane.size) * self.plane.pitch,
            grouped=self.geometry.groups > 1,
        )
        return order.choose(work, self.context)

    def weights(self) -> np.ndarray:
        """Flat: (blocks, taps, words, lanes, inputs of a word); for pairs their lanes innermost."""
        lanes, word = self.machine.lanes, self.machine.word
        dense = self._dense()  # (blocks * lanes, taps, extent)
        split = dense.reshape(self.blocks, lanes, self.taps, self.row_words, word)
        inner = (4, 1) if self.machine.unit == "smlal" else (1, 4)
        packed = split.transpose(0, 2, 3, *inner)
        return np.ascontiguousarray(packed).reshape(-1).astype(self.machine.weight)

    def bias(self) -> np.ndarray:
        """int32, with the share of the input's zero point in it (modulo 2^32, as sums are)."""
        flat = self.op.weight.reshape(len(self.op.weight), -1).astype(np.int64)
        whole = self.op.bias.astype(np.int64) - self.zero_point * flat.sum(1)
        return filled(whole.astype(np.int32), self.blocks * self.machine.lanes)

    def _dense(self) -> np.ndarray:
        """(O, kh, kw, I / groups) -> (filled-up O, taps, extent), zero where unconnected."""
        g, lanes = self.geometry, self.machine.lanes
        weight = self.op.weight.reshape(g.out_channels, self.taps, g.group_in)
        dense = np.zeros((self.blocks * lanes, self.taps, self.reduction.extent), np.int8)
        if g.groups == 1:
            dense[: g.out_channels, :, : g.channels] = weight
            return dense
        per_group = g.out_channels // g.groups
        for o in range(g.out_channels):
            first = o // per_group * g.group_in - self.reduction.start(o // lanes)
            dense[o, :, first : first + g.group_in] = weight[o]
        return dense


def _geometry(op: Conv2d, x: IntegerTensor, y: IntegerTensor) -> Geometry:
    """The integers of a convolution; the plane of one that is pointwise is one row."""
    (_, h, w, c), (_, oh, ow, o) = x.shape, y.shape
    kernel = op.weight.shape[1], op.weight.shape[2]
    g = Geometry(
        1, c, h, w, o, oh, ow, kernel, op.stride, op.padding, op.dilation, op.weight.shape[3],
        op.groups,
    )  # fmt: skip
    if not g.pointwise:
        return g
    return replace(g, height=1, width=h * w, out_height=1, out_width=oh * ow)
