"""int8 convolutions and linear layers: register tiles of pixels x vectors of output channels.

A word of inputs of a pixel is broadcast against a vector of packed weights, and their products are
summed within each lane. Requantization ends the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from hwprune.lower.cpu import tiles, walk
from hwprune.lower.cpu.context import Context
from hwprune.lower.cpu.walk import Place
from hwprune.lower.int8 import emit
from hwprune.lower.int8.border import Source, source_of
from hwprune.lower.int8.conv_plan import Plan
from hwprune.lower.int8.emit import Buffer, Code, Expr, T, loop, unroll
from hwprune.lower.int8.layout import padded, spec_of
from hwprune.lower.int8.machine import Machine
from hwprune.lower.int8.scaling import Channels, Finish
from hwprune.quantize.graph import Conv2d, IntegerTensor

Pixel = Callable[[Expr], Expr]


def conv(
    op: Conv2d, x: IntegerTensor, y: IntegerTensor, machine: Machine, context: Context
) -> Code:
    """A convolution of any stride, padding, dilation and number of groups."""
    plan = Plan.of(op, x, y, machine, context)
    finish = Finish.of(op.clamp, y, machine)
    channels = Channels.of(op, x, finish, plan.blocks * machine.lanes)
    constants = (plan.weights(), plan.bias(), *channels.arrays)

    def body(xs: list[Buffer], cs: list[Buffer], out: Buffer) -> None:
        source = source_of(
            xs[0], plan.plane, plan.zero_point, machine, context.threads, machine.source
        )
        writer = _Writer(plan, source, cs[0], cs[1], cs[2:], channels, out)
        for part in plan.block_segments():
            writer.part(part)

    func = emit.build_function(machine, [spec_of(x, machine)], constants, spec_of(y, machine), body)
    tile = plan.tile
    reason = f"{machine.unit}, {tile.rows}x{tile.cols} pixels x {tile.blocks} vectors"
    return Code(f"int8.{op.kind}", reason, func, constants)


@dataclass(frozen=True)
class _Writer:
    plan: Plan
    source: Source
    weight: Buffer
    bias: Buffer
    scales: list[Buffer]
    channels: Channels
    y: Buffer

    def part(self, part: tiles.Segment) -> None:
        """All tiles of some blocks of output channels, in the order that moves the least memory."""
        plan, threads = self.plan, self.plan.context.threads
        chosen, planes = plan.order(part), plan.plane_segments()
        if chosen.by_blocks:
            for index in walk.blocks(part, threads):
                for place, _ in walk.positions(part, index, planes):
                    self._tile(place)
            return
        for place in walk.in_order(part, planes, chosen, threads):
            self._tile(place)

    def _tile(self, place: Place) -> None:
        """A tile from its biases to what is stored."""
        tile, lanes = place.tile, self.plan.machine.lanes
        acc = emit.local((tile.accumulators * lanes,))
        with unroll(tile.rows * tile.cols) as p, unroll(tile.blocks) as b:
            bias = emit.load(self.bias, (place.block + b) * lanes, lanes)
            emit.store(acc, bias, (p * tile.blocks + b) * lanes, lanes)
        self._reduce(acc, place)
        self._store(acc, place)

    def _reduce(self, acc: Buffer, place: Place) -> None:
        plan, g = self.plan, self.plan.geometry
        with ExitStack() as nest:
            dy, dx = self._taps(nest)
            k = nest.enter_context(loop(plan.steps))
            first = plan.reduction.start(place.block) + k * (plan.words * plan.machine.word)

            def pixel(p: Expr) -> Expr:
                row, col = place.row + p // place.tile.cols, place.col + p % place.tile.cols
                y = row * g.stride[0] + dy * g.dilation[0]
                x = col * g.stride[1] + dx * g.dilation[1]
                return self.source.index(y, x) + first

            tap = (place.block * plan.taps + dy * g.kernel[1] + dx) * plan.row_words
            self._step(acc, place.tile, pixel, tap + k * plan.words)

    def _taps(self, nest: ExitStack) -> tuple[Expr, Expr]:
        """The loops over the taps; one where a tap is short, which LLVM would unroll and spill."""
        kh, kw = self.plan.geometry.kernel
        if self.plan.steps > 1:
            return nest.enter_context(loop(kh)), nest.enter_context(loop(kw))
        tap = nest.enter_context(loop(kh * kw))
        return tap // kw, tap % kw

    def _step(self, acc: Buffer, tile: tiles.Tile, pixel: Pixel, row: Expr) -> None:
        """Add the products of a step's words; `row` counts vectors of weights."""
        plan, lanes = self.plan, self.plan.machine.lanes
        word = self._words(tile, pixel)
        block = plan.taps * plan.row_words
        with unroll(plan.words) as w, unroll(tile.rows * tile.cols) as p, unroll(tile.blocks) as b:
            at = (row + b * block + w) * plan.vector
            weights = emit.load(self.weight, at, plan.vector)
            i = (p * tile.blocks + b) * lanes
            total = emit.call("dot", lanes, emit.load(acc, i, lanes), word(p, w), weights)
            emit.store(acc, total, i, lanes)

    def _words(self, tile: tiles.Tile, pixel: Pixel) -> Callable[[Expr, Expr], Expr]:
        """The word w of position p: from memory, or a lane of what is held."""
        plan, word = self.plan, self.plan.machine.word
        if not plan.held:
            return lambda p, w: T.reinterpret(
                "int32", emit.load(self.source.buffer, pixel(p) + w * word, word)
            )
        words = plan.words
        vectors = emit.local((tile.rows * tile.cols * words,))
        with unroll(tile.rows * tile.cols) as p:
            found = emit.load(self.source.buffer, pixel(p), words * word)
            emit.store(vectors, T.reinterpret(f"int32x{words}", found), p * words, words)
        return lambda p, w: vectors[p * words + w]

    def _store(self, acc: Buffer, place: Place) -> None:
        """Requantize and store a tile: a vector's positions in a loop that reads its sums again.

        In registers, LLVM would start with all of them at once and spill.
        """
        plan, tile, lanes = self.plan, place.tile, self.plan.machine.lanes
        pitch = padded(plan.geometry.out_channels)
        sums = emit.local((tile.accumulators * lanes,))
        with unroll(tile.accumulators) as i:
            emit.store(sums, emit.load(acc, i * lanes, lanes), i * lanes, lanes)
        with unroll(tile.blocks) as b, loop(tile.rows) as r, loop(tile.cols) as c:
            i = ((r * tile.cols + c) * tile.blocks + b) * lanes
            channel = (place.block + b) * lanes
            value = self.channels.value(emit.load(sums, i, lanes), self.scales, channel, lanes)
            at = ((place.row + r) * plan.geometry.out_width + place.col + c) * pitch + channel
            emit.store_some(self.y, value, at, lanes, min(lanes, pitch))
