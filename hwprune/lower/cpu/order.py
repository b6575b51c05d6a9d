"""The order of a convolution's loops: which operand is read once, and what the threads share.

A small analytic model of the traffic beyond the level-2 cache. No timing, no search.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprune.lower.cpu import emit
from hwprune.lower.cpu.emit import Context

CACHE_SHARE = 0.75  # of the level-2 cache that an operand may fill and still be there the next time


@dataclass(frozen=True)
class Work:
    """A convolution as tiles (of its largest segment) and the bytes that its operands hold."""

    block_tiles: int
    row_tiles: int
    col_tiles: int
    weight_bytes: int
    input_bytes: int
    grouped: bool = False


@dataclass(frozen=True)
class Order:
    """`axis` is shared by the threads; `loops` are nested from the outside in.

    Both name "block" (of output channels), "row" and "col" (tiles of output positions).
    """

    axis: str
    loops: tuple[str, str, str]

    @property
    def by_blocks(self) -> bool:
        """Whether a thread takes blocks of channels, and computes all positions of each."""
        return self.axis == self.loops[0] == "block"


def choose(work: Work, context: Context) -> Order:
    """Positions outside where the weights stay in the cache and the input does not."""
    counts = {"block": work.block_tiles, "row": work.row_tiles, "col": work.col_tiles}
    limit = CACHE_SHARE * context.l2_bytes
    positions = work.row_tiles * work.col_tiles
    again_weights = 0 if work.weight_bytes <= limit else work.weight_bytes * (positions - 1)
    read = work.input_bytes // work.block_tiles if work.grouped else work.input_bytes
    again_input = 0 if read <= limit else read * (work.block_tiles - 1)
    loops = ("block", "row", "col") if again_input <= again_weights else ("row", "col", "block")
    axis = max(loops, key=lambda k: emit.balance(counts[k], context.threads))
    return Order(axis, loops)
