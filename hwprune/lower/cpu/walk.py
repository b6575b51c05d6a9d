"""Which tile of a convolution is computed when, and by whom: the loops around a tile.

In: segments of blocks of output channels and of the output plane, and the order that was chosen.
Out: places, each within its loops: whoever takes one writes a tile there before the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from hwprune.lower.cpu.emit import Expr, loop, split_threads
from hwprune.lower.cpu.order import Order
from hwprune.lower.cpu.tiles import Segment, Tile

Planes = Sequence[tuple[Segment, Segment]]  # rows x columns


@dataclass(frozen=True)
class Place:
    """A tile's shape and its first block, row and column."""

    tile: Tile
    block: Expr
    row: Expr
    col: Expr


def blocks(part: Segment, threads: int) -> Iterator[Expr]:
    """Tiles of blocks, shared by the threads."""
    with split_threads(part.count, threads) as (first, count), loop(count) as i:
        yield first + i


def positions(part: Segment, index: Expr, planes: Planes) -> Iterator[tuple[Place, Expr]]:
    """Every tile of positions of one tile of blocks, with its number."""
    done = 0
    for rows, cols in planes:
        with loop(rows.count) as row, loop(cols.count) as col:
            place = _place(part, index, rows, row, cols, col)
            yield place, done + row * cols.count + col
        done += rows.count * cols.count


def in_order(part: Segment, planes: Planes, order: Order, threads: int) -> Iterator[Place]:
    """All tiles of some blocks, in an order, one of whose axes the threads share."""
    for rows, cols in planes:
        counts = {"block": part.count, "row": rows.count, "col": cols.count}
        with ExitStack() as stack:
            ranges = {k: (0, count) for k, count in counts.items()}
            split = split_threads(counts[order.axis], threads)
            ranges[order.axis] = stack.enter_context(split)
            at = {k: ranges[k][0] + stack.enter_context(loop(ranges[k][1])) for k in order.loops}
            yield _place(part, at["block"], rows, at["row"], cols, at["col"])


def _place(part: Segment, block: Expr, rows: Segment, row: Expr, cols: Segment, col: Expr) -> Place:
    shape = Tile(rows.size, cols.size, part.size)
    first = (s.start + i * s.size for s, i in ((part, block), (rows, row), (cols, col)))
    return Place(shape, *first)
