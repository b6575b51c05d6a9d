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
    left: Callable[[Expr, Expr], Expr],
    right: Buffer,
    block: Expr,
    each_step: Callable[[Expr], None] | None = None,
) -> Buffer:
    """The sums of a tile of `cols` rows: (rows x blocks, lanes), in registers.

    `left(row, k)` is a value of the left operand; `right` holds (vectors, depth, lanes), of which
    the tile's are those from `block` on. `each_step` runs before every unrolled step.
    """
    lanes, step = int(right.shape[-1]), emit.step(depth)
    shape = (tile.accumulators, lanes)
    acc = T.alloc_buffer(shape, "float32", scope="local", annotations=emit.ON_STACK)
    with T.unroll(tile.accumulators) as i:
        emit.store_vector(acc, [i], lanes, lambda _: const(0.0))
    with loop(depth // step) as first:
        if each_step is not None:
            each_step(first)
        with unroll(step) as j, unroll(tile.cols) as r, unroll(tile.blocks) as b:
            k, i = first * step + j, r * tile.blocks + b
            value = left(r, k)
            with T.vectorized(lanes) as lane:
                term = value * right[block + b, k, lane]
                T.buffer_store(acc, acc[i, lane] + term, [i, lane])
    return acc
