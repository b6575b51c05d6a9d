"""The product that linear layers, matrix products and attention share: rows times vectors.

One register tile: every value of the left operand is multiplied with several vectors of the right
one, and the sums stay in registers over the whole reduction.
"""

from __future__ import annotations

from collections.abc import Callable

from hwprune.lower.cpu import emit, tiles
from hwprune.lower.cpu.context import STEP, Context
from hwprune.lower.cpu.emit import Buffer, Expr, T, const, loop, unroll
from hwprune.lower.cpu.tiles import Tile

FEW = 4  # rows, fewer of which stream the vectors
STREAMED = 8  # vectors at a time


def row_tile(rows: int, blocks: int, depth: int, context: Context) -> Tile:
    """One row streams eight vectors; more rows share them as a convolution does."""
    if rows < FEW:
        return Tile(1, 1, min(STREAMED, blocks))
    held = context.held(emit.step(depth, context.step))
    return tiles.choose(
        1, rows, blocks, context.registers, one_row=True, pipes=context.pipes, held=held
    )


def holds_rows(depth: int, context: Context) -> bool:
    """Whether a register holds a step's values of a row, of which multiply-adds take a lane."""
    return context.held(emit.step(depth, context.step)) > 0


def product(
    tile: Tile,
    depth: int,
    left: Callable[[Expr, Expr, Expr], Expr],
    right: Buffer,
    block: Expr,
    each_step: Callable[[Expr], None] | None = None,
    *,
    held: bool = False,
    step: int = STEP,
) -> Buffer:
    """The sums of a tile of `cols` rows: (rows x blocks, lanes), in registers.

    `left(row, k, j)` is value k + j of the left operand, k the first of a step; `right` holds
    (vectors, depth, lanes), of which the tile's are those from `block` on. `each_step` runs before
    every unrolled step, of `step` values at most. `held`: a step's values of a row are one vector,
    loaded once.
    """
    lanes, step = int(right.shape[-1]), emit.step(depth, step)
    shape = (tile.accumulators, lanes)
    acc = emit.local(shape)
    with T.unroll(tile.accumulators) as i:
        emit.store_vector(acc, [i], lanes, lambda _: const(0.0))
    with loop(depth // step) as first:
        if each_step is not None:
            each_step(first)

        def value(row: Expr, j: Expr) -> Expr:
            return left(row, first * step, j)

        if held:
            value = emit.held(tile.cols, lanes, value)
        with unroll(step) as j, unroll(tile.cols) as r, unroll(tile.blocks) as b:
            k, i = first * step + j, r * tile.blocks + b
            with T.vectorized(lanes) as lane:
                term = value(r, j) * right[block + b, k, lane]
                T.buffer_store(acc, acc[i, lane] + term, [i, lane])
    return acc
