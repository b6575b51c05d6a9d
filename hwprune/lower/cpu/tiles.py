"""Choosing register tiles: how many output columns, rows and channel blocks are kept in registers.

A small analytic model (cycles of multiply-adds against cycles of loads) picks the tile; extents
that it does not divide are covered by a second, smaller tile. No timing, no search.
"""

from __future__ import annotations

from dataclasses import dataclass

BLEND = 6  # a norm of the limits of a tile


@dataclass(frozen=True)
class Pipes:
    """What a core starts in a cycle, in whole vectors; the default is that of a wide x86 core.

    A broadcast takes a load of its own, of which one a cycle runs. With `lane_operand` a multiply-
    add takes its value from a lane, of one of the first `lane_registers`: values that lie side by
    side are loaded as a vector and held, and fill registers meanwhile. Where `in_order` loads wait
    for their turn among the multiply-adds, and weights are loaded before they are needed. `sums`
    are the additions that start beside multiply-adds, in pipes of their own.
    """

    fma: float = 2.0
    latency: float = 4.0  # cycles of a multiply-add
    loads: float = 2.0
    issue: float = 4.0
    lane_operand: bool = False
    in_order: bool = False
    lane_registers: int = 32
    sums: float = 0.0


@dataclass(frozen=True)
class Segment:
    """`count` tiles of `size` elements from `start` on."""

    start: int
    count: int
    size: int


@dataclass(frozen=True)
class Tile:
    """A register tile: `rows` x `cols` output positions x `blocks` channel vectors."""

    rows: int
    cols: int
    blocks: int

    @property
    def accumulators(self) -> int:
        """Vector registers that hold results."""
        return self.rows * self.cols * self.blocks


WIDE = Pipes()
HALVES = Pipes(fma=1.0, sums=1.0)  # of 512 bits, one after the other (AMD 57647, Zen 4)


def segments(extent: int, size: int) -> tuple[Segment, ...]:
    """Cover `extent` with tiles of `size` and one smaller tile for the rest."""
    size = min(size, extent)
    count, rest = divmod(extent, size)
    parts = [Segment(0, count, size)]
    if rest:
        parts.append(Segment(count * size, 1, rest))
    return tuple(parts)


def _cycles(positions: int, blocks: int, pipes: Pipes, held: int) -> float:
    """Cycles of one reduction step of a tile.

    Weights come from level 2 one vector in two cycles. What is nearly as slow as the slowest limit
    adds to it. Too few accumulators cannot hide the latency of the multiply-adds.
    """
    fma = max(positions * blocks, pipes.fma * pipes.latency) / pipes.fma
    inputs = positions / held if held else positions
    loads = inputs / (pipes.loads if held else 1) + blocks / pipes.loads
    if pipes.in_order:
        return fma + loads
    instructions = (positions * blocks + inputs + blocks) / pipes.issue
    limits = (fma, loads, instructions, 2 * blocks)
    return float(sum(limit**BLEND for limit in limits) ** (1 / BLEND))


def fits(tile: Tile, registers: int, pipes: Pipes = WIDE, held: int = 0) -> bool:
    """Accumulators, a weight vector a block, the broadcast or held values, and some to spare."""
    weights = tile.blocks * (2 if pipes.in_order else 1)
    values = tile.rows * tile.cols if held else 0
    if values > pipes.lane_registers * 3 // 4:
        return False
    return tile.accumulators + weights + values + 1 <= registers - registers // 16


def choose(
    rows: int,
    cols: int,
    blocks: int,
    registers: int,
    *,
    one_row: bool,
    variant_cost: float = 0.01,
    most_blocks: int = 4,
    pipes: Pipes = WIDE,
    held: int = 0,
) -> Tile:
    """The tile with the least modelled cycles over the whole output plane.

    `held`: how many steps of a position's values one register holds, 0 where none does.
    """
    best: tuple[float, Tile] | None = None
    for b in range(1, min(blocks, most_blocks) + 1):
        for c in range(1, min(cols, registers) + 1):
            for r in (1,) if one_row or c < cols else range(1, min(rows, 4) + 1):
                tile = Tile(r, c, b)
                if not fits(tile, registers, pipes, held):
                    continue
                cycles = plane_cycles(rows, cols, blocks, tile, variant_cost, pipes, held)
                cost = (cycles, -tile.accumulators)
                if best is None or cost < (best[0], -best[1].accumulators):
                    best = (cost[0], tile)
    assert best is not None
    return best[1]


def plane_cycles(
    rows: int,
    cols: int,
    blocks: int,
    tile: Tile,
    variant_cost: float = 0.01,
    pipes: Pipes = WIDE,
    held: int = 0,
) -> float:
    """Modelled cycles of one reduction step over a whole output plane."""
    total = 0.0
    variants = 0
    for r in segments(rows, tile.rows):
        for c in segments(cols, tile.cols):
            for b in segments(blocks, tile.blocks):
                cycles = _cycles(r.size * c.size, b.size, pipes, held)
                total += r.count * c.count * b.count * cycles
                variants += 1
    return total * (1 + variant_cost * (variants - 1))
