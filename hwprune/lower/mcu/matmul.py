"""Products of packed weights and widened inputs: the inner loops of convolutions and linear layers.

Two register tiles: two channels by four columns, where four columns can be had (13 instructions for
16 multiply-accumulates), and four channels by one column (19 for 16). Weights lie in the order in
which they are read, two channels to a word, so that one load and two sign extensions serve both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwprune.lower.mcu import emit
from hwprune.lower.mcu.emit import Buffer, Expr, T, at, bind, i32, loop, run
from hwprune.lower.mcu.scaling import Scaling

UNROLL = 8  # steps; twice as many where they come out even


@dataclass(frozen=True)
class Tile:
    """A register tile: channels by columns, and the inputs of a step."""

    function: str
    partial: str  # needs fewer registers: beside a loop, and where some channels are padding
    channels: int
    columns: int
    inputs: int  # elements of each column that a step reads

    @property
    def step_weights(self) -> int:
        """Bytes of weights of a step."""
        return self.channels * self.inputs

    @property
    def step_inputs(self) -> int:
        """int16 of a step."""
        return self.columns * self.inputs

    def depth(self, inputs: int) -> int:
        """Inputs, rounded up to whole steps."""
        return -(-inputs // self.inputs) * self.inputs


WIDE = Tile("dot_2x4", "halves_2x4", 2, 4, 2)
TALL = Tile("dot_4x1", "dot_4x1", 4, 1, 4)


def pack(weight: np.ndarray, tile: Tile) -> np.ndarray:
    """(O, K) int8, K in the order of the widened inputs -> the order of the tile's reads, flat.

    Channels and inputs are padded with zeros to whole tiles.
    """
    outputs, depth = weight.shape
    blocks = -(-outputs // tile.channels)
    padded = np.zeros((blocks * tile.channels, tile.depth(depth)), np.int8)
    padded[:outputs, :depth] = weight
    # (block, pair of channels, channel, step, pair of inputs, input)
    split = padded.reshape(blocks, tile.channels // 2, 2, -1, tile.inputs // 2, 2)
    return np.ascontiguousarray(split.transpose(0, 3, 1, 4, 5, 2)).reshape(-1)


def interleaved(count: int) -> np.ndarray:
    """The order in which sign extension leaves the elements of every four."""
    return np.arange(count).reshape(-1, 4)[:, [0, 2, 1, 3]].reshape(-1)


def emit_product(
    tile: Tile,
    outputs: int,
    depth: int,
    buffers: dict[str, Buffer],
    scaling: Scaling,
    x: Expr,
    first: Expr,
    row: int,
    group: Expr = 0,
) -> None:
    """All channels of the tile's columns: y[first + column * row + channel].

    `depth`: inputs in whole steps. x: where the widened inputs begin. `group` chooses among blocks
    of weights and channels of the same sizes.
    """
    blocks, rest = divmod(outputs, tile.channels)
    size = -(-outputs // tile.channels) * tile.channels * depth

    def block(index: Expr, channels: int) -> None:
        acc = emit.accumulators(tile.channels * tile.columns)
        channel = group * outputs + index * tile.channels
        for j in range(tile.channels):
            bias = bind(buffers["cb"][channel + min(j, channels - 1)])
            for c in range(tile.columns):
                T.buffer_store(acc, bias, [j * tile.columns + c])
        weights = group * size + index * tile.channels * depth
        function = tile.function if channels == tile.channels else tile.partial
        _steps(tile, function, depth, buffers, acc, x, weights)
        for j in range(channels):
            constants = scaling.channel(buffers, channel + j)
            for c in range(tile.columns):
                value = scaling.value(acc[j * tile.columns + c], constants)
                T.buffer_store(buffers["y"], value, [first + c * row + channel + j])

    if blocks:
        with loop(blocks) as index:
            block(index, tile.channels)
    if rest:
        block(blocks, rest)


def _steps(
    tile: Tile,
    function: str,
    depth: int,
    buffers: dict[str, Buffer],
    acc: Buffer,
    x: Expr,
    weights: Expr,
) -> None:
    steps = depth // tile.inputs
    unroll = UNROLL if steps % (2 * UNROLL) else 2 * UNROLL
    loops, rest = divmod(steps, unroll)

    def unrolled(function: str, done: Expr, count: int) -> None:
        w = at(buffers["cw"], weights + done * tile.step_weights)
        inputs = at(buffers["s"], x + done * tile.step_inputs)
        for step in range(count):
            run(function, at(acc, 0), w, inputs, i32(step))

    if loops:
        with loop(loops) as k:
            unrolled(function, k * unroll, unroll)
    if rest:
        unrolled(tile.partial if loops else function, loops * unroll, rest)
