"""When Winograd pays, at which size of tile, and how many tiles at a time.

A small analytic model of cycles: products, transforms, and weights that stream in from beyond the
level-2 cache. Its constants were fitted to measured kernels. No timing, no search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwprune.lower.cpu import emit, tiles
from hwprune.lower.cpu.emit import Context
from hwprune.lower.cpu.geometry import Geometry

SIZES = (2, 4)  # outputs of a tile along each axis
CACHE_SHARE = 1.0  # of the level-2 cache that a chunk (and weights that stay there) may fill
DIRECT_GAIN = 1.2  # how much faster the direct convolution reads weights: it fetches them early
L3_BYTES_PER_CYCLE = 8.0  # read again, where they stay in this core's share of level 3
SHARED_BYTES_PER_CYCLE = 2.0  # what another core has just written
STEP = 4  # input channels per unrolled reduction step
TWO = 2.0  # multiply-adds or sums a cycle of the cores where the next were measured
INPUT_CYCLES = {2: 80.0, 4: 200.0}  # transforms, per tile and vector of channels
OUTPUT_CYCLES = {2: 70.0, 4: 170.0}
EFFICIENCY = 0.9  # of the products, against the model of register tiles
DIRECT_EFFICIENCY = 0.9
GAIN = 0.9  # of the direct cost that Winograd may need at most
NEAR = 1.01  # of the least cycles: among those the fewest tiles at a time, nearer to level 1
MIN_CHUNK = 14
MOST_BLOCKS = 3  # of a register tile: every product reads all its weights from level 2
VARIANT_COST = 0.03  # of a register tile more, which is code more to compile


@dataclass(frozen=True)
class Choice:
    """Tiles of `m` x `m` outputs, `chunk` of them at a time; the modelled cycles of one image."""

    m: int
    chunk: int
    cycles: float


def choose(g: Geometry, context: Context) -> Choice | None:
    """The cheapest way by Winograd; None where the direct convolution is as cheap."""
    options = [c for m in SIZES for c in _options(g, m, context)]
    least = min(c.cycles for c in options)
    if least > GAIN * direct_cycles(g, context):
        return None
    return min((c for c in options if c.cycles <= NEAR * least), key=lambda c: c.chunk)


def direct_cycles(g: Geometry, context: Context) -> float:
    """Modelled cycles of the direct convolution of one image."""
    blocks = emit.blocks(g.out_channels, context.lanes)
    products = 9 * g.channels * blocks * g.out_height * g.out_width / context.pipes.fma
    weights = 4 * 9 * g.channels * blocks * context.lanes
    read = DIRECT_GAIN * context.memory_bytes_per_cycle
    return (products / DIRECT_EFFICIENCY + weights / read) / context.threads


def _options(g: Geometry, m: int, context: Context) -> list[Choice]:
    """Every number of chunks that stay in the cache; the fewest that nearly do, if none does."""
    count = math.ceil(g.out_height / m) * math.ceil(g.out_width / m)
    room = CACHE_SHARE * context.l2_bytes
    weights = _weight_bytes(g, m, context)
    if weights <= room / 2:  # they stay there too
        room -= weights
    lanes = context.lanes
    vectors = emit.blocks(g.channels, lanes) + min(emit.blocks(g.out_channels, lanes), 2)
    fits = max(int(room / (4 * (m + 2) ** 2 * vectors * lanes)), 4)
    fewest = min(max(MIN_CHUNK // context.threads, 4), fits)
    least, most = math.ceil(count / fits), max(count // fewest, 1)
    sizes = sorted({math.ceil(count / n) for n in range(least, max(most, least) + 1)})
    return [Choice(m, size, _cycles(g, m, size, count, context)) for size in sizes]


def _weight_bytes(g: Geometry, m: int, context: Context) -> int:
    """Bytes of the transformed weights."""
    lanes = context.lanes
    return 4 * (m + 2) ** 2 * g.channels * emit.blocks(g.out_channels, lanes) * lanes


def _cycles(g: Geometry, m: int, chunk: int, count: int, context: Context) -> float:
    """Modelled cycles of one image, of the thread that has most to do."""
    lanes, taps = context.lanes, (m + 2) ** 2
    into, out = emit.blocks(g.channels, lanes), emit.blocks(g.out_channels, lanes)
    tile, chunks = product_tile(chunk, out, context), math.ceil(count / chunk)
    pipes, held = context.pipes, context.held(STEP)
    plane = tiles.plane_cycles(1, chunk, out, tile, pipes=pipes, held=held)
    products = plane * taps * g.channels / EFFICIENCY
    transforms = (into * INPUT_CYCLES[m] + out * OUTPUT_CYCLES[m]) * TWO
    transforms /= pipes.fma + pipes.sums
    work = chunks * products + count * transforms
    weights, alone = _weight_bytes(g, m, context), apart(chunks, context.threads)
    turns = math.ceil(chunks / context.threads) if alone else chunks
    read = weights / context.memory_bytes_per_cycle + (turns - 1) * _again(weights, context)
    if alone:
        return work / (context.threads * emit.balance(chunks, context.threads)) + read
    shares = emit.balance(math.ceil(out / tile.blocks), context.threads)
    others = 4 * count * taps * into * lanes * (context.threads - 1) / context.threads
    cores = context.threads * shares
    return (work + read) / cores + others / SHARED_BYTES_PER_CYCLE


def apart(chunks: int, threads: int) -> bool:
    """Whether each thread has chunks of its own; else the threads share the work of every chunk."""
    return chunks >= 2 * threads


def streams(g: Geometry, m: int, context: Context) -> bool:
    """Whether the weights come from beyond the level-2 cache for every chunk."""
    return _weight_bytes(g, m, context) > CACHE_SHARE / 2 * context.l2_bytes


def product_tile(chunk: int, out_blocks: int, context: Context) -> tiles.Tile:
    """The register tile of the products: tiles of the image x channel vectors."""
    blocks = -(-out_blocks // context.threads)  # or a thread would have none
    return tiles.choose(
        1,
        chunk,
        blocks,
        context.registers,
        one_row=True,
        variant_cost=VARIANT_COST,
        most_blocks=MOST_BLOCKS,
        pipes=context.pipes,
        held=context.held(STEP),
    )


def _again(weights: int, context: Context) -> float:
    """Cycles in which weights are read once more."""
    if weights <= CACHE_SHARE / 2 * context.l2_bytes:
        return 0.0
    near = weights <= context.l3_bytes
    return weights / (L3_BYTES_PER_CYCLE if near else context.memory_bytes_per_cycle)
