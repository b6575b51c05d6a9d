"""Weights fetched early: every tile of positions brings a share of those that follow.

Weights come from beyond the level-2 cache whenever a network runs. Without this the first tile of
positions waits for them, and the others leave the memory idle.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprune.lower.cpu import emit
from hwprune.lower.cpu.emit import Buffer, Expr

LEVEL = 2  # of cache, where they wait


@dataclass(frozen=True)
class Share:
    """Fetches a chunk of weights of `blocks` vectors, one share a tile of positions.

    The cache lines of `rows` steps of each vector's weights, from step `first` of vector `block`
    on, are spread evenly over `slots` steps of the reduction, of which this tile does those from
    `slot` on.
    """

    weight: Buffer  # a vector's lines follow one another: (vectors, ..., lanes)
    block: Expr
    blocks: int
    first: Expr
    rows: int
    slot: Expr
    slots: int

    def __call__(self, done: Expr) -> None:
        """Fetch what step `done` of this tile has to."""
        inner, lanes = [0] * (len(self.weight.shape) - 2), int(self.weight.shape[-1])
        line = emit.line_vectors(lanes)
        lines = emit.blocks(self.rows, line)
        row = self.first + (self.slot + done) * lines // self.slots * line
        for b in range(self.blocks):
            for i in range(emit.blocks(lines, self.slots)):
                at = [self.block + b, *inner, (row + i * line) * lanes]
                emit.prefetch(self.weight, at, LEVEL)
