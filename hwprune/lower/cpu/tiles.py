"""Choosing register tiles: how many output columns, rows and channel blocks are kept in registers.

A small analytic model (cycles of multiply-adds against cycles of loads) picks the tile; extents
that it does not divide are covered by a second, smaller tile. No timing, no search.
"""

from __future__ import annotations

from dataclasses import dataclass

BLEND = 6  # a norm of the limits of a tile


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


def segments(extent: int, size: int) -> tuple[Segment, ...]:
    """Cover `extent` with tiles of `size` and one smaller tile for the rest."""
    size = min(size, extent)
    count, rest = divmod(extent, size)
    parts = [Segment(0, count, size)]
    if rest:
        parts.append(Segment(count * size, 1, rest))
    return tuple(parts)


def _cycles(positions: int, blocks: int) -> float:
    """Cycles of one reduction step of a tile.

    In a cycle two multiply-adds, two loads of weights (from level 2 one in two cycles), one
    broadcast of an input value, four instructions. What is nearly as slow as the slowest of these
    adds to it. Fewer than eight accumulators cannot hide the latency of four cycles at two a cycle.
    """
    fma = max(positions * blocks, 8) / 2
    loads = positions + blocks / 2
    instructions = (positions * blocks + positions + blocks) / 4
    limits = (fma, loads, instructions, 2 * blocks)
    return float(sum(limit**BLEND for limit in limits) ** (1 / BLEND))


def fits(tile: Tile, registers: int) -> bool:
    """Accumulators, one weight vector a block, one broadcast value, and some to spare."""
    return tile.accumulators + tile.blocks + 1 <= registers - registers // 16


def choose(
    rows: int,
    cols: int,
    blocks: int,
    registers: int,
    *,
    one_row: bool,
    variant_cost: float = 0.01,
    most_blocks: int = 4,
) -> Tile:
    """The tile with the least modelled cycles over the whole output plane."""
    best: tuple[float, Tile] | None = None
    for b in range(1, min(blocks, most_blocks) + 1):
        for c in range(1, min(cols, registers) + 1):
            for r in (1,) if one_row or c < cols else range(1, min(rows, 4) + 1):
                tile = Tile(r, c, b)
                if not fits(tile, registers):
                    continue
                cost = (plane_cycles(rows, cols, blocks, tile, variant_cost), -tile.accumulators)
                if best is None or cost < (best[0], -best[1].accumulators):
                    best = (cost[0], tile)
    assert best is not None
    return best[1]


def plane_cycles(
    rows: int, cols: int, blocks: int, tile: Tile, variant_cost: float = 0.01
) -> float:
    """Modelled cycles of one reduction step over a whole output plane."""
    total = 0.0
    variants = 0
    for r in segments(rows, tile.rows):
        for c in segments(cols, tile.cols):
            for b in segments(blocks, tile.blocks):
                total += r.count * c.count * b.count * _cycles(r.size * c.size, b.size)
                variants += 1
    return total * (1 + variant_cost * (variants - 1))
