"""The product that linear layers, matrix products and attention share: rows times vectors.

One register tile: every value of the left operand is multiplied with several vectors of the right
one, and the sums stay in registers over the whole reduction.
"""

from __future__ import annotations

from collections.abc import Callable

from hwprune.lower.cpu import emit
from hwprune.lower.cpu.emit import Buffer, Expr, T, const, loop, unroll
from hwprune.lower.cpu.tiles import Tile


def product(
    tile: Tile,
    depth: int,
    left: Callable[[Expr, Expr, Expr], Expr],
    right: Buffer,
    block: Expr,
    each_step: Callable[[Expr], None] | None = None,
    *,
    held: bool = False,
) -> Buffer:
    """The sums of a tile of `cols` rows: (rows x blocks, lanes), in registers.

    `left(row, k, j)` is value k + j of the left operand, k the first of a step; `right` holds
    (vectors, depth, lanes), of which the tile's are those from `block` on. `each_step` runs before
    every unrolled step. `held`: a step's values of a row are one vector, loaded once.
    """
    lanes, step = int(right.shape[-1]), emit.step(depth)
    shape = (tile.accumulators, lanes)
    acc = T.alloc_buffer(shape, "float32", scope="local", annotations=emit.ON_STACK)
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
