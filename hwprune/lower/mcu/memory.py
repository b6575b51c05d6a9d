"""The memory plan of a network on a microcontroller: one arena, its peak and who makes it.

In: values with their sizes and lifetimes, kernels' scratch among them. Out: offsets. Every plan is
the best of several orders of placing (by size: Pisarchyk and Lee, 2020; by time; by area), of whole
blocks reused (TVM's StaticPlanBlockMemory), and of a search among orders that ends where no plan
can be smaller.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hwprune.lower.arena import Lifetime, place_in_order

ALIGNMENT = 8  # bytes: pairs of words are loaded at once
TRIES = 400
MATCH = 16  # TVM reuses a block up to so many times smaller or larger


@dataclass(frozen=True)
class Memory:
    """Offsets by name in an arena of `size_bytes`.

    No plan needs less than `least_bytes`: what is alive while call number `peak` runs.
    """

    offsets: Mapping[str, int]
    size_bytes: int
    least_bytes: int
    peak: int


def aligned(size: int) -> int:
    """Bytes, rounded up to what every value begins at."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def plan_memory(values: Sequence[Lifetime]) -> Memory:
    """Place values; sizes are multiples of ALIGNMENT."""
    least, peak = lower_bound(values)
    best = min(_candidates(values), key=lambda offsets: extent(values, offsets), default={})
    size = extent(values, best)
    rng, order = random.Random(0), sorted(values, key=lambda v: (-v.size, v.first))
    for _ in range(TRIES):
        if size <= least or len(order) < 2:
            break
        trial = list(order)
        i, j = rng.sample(range(len(trial)), 2)
        trial.insert(j, trial.pop(i))
        offsets = place_in_order(trial)
        reached = extent(values, offsets)
        if reached <= size:
            best, size, order = offsets, reached, trial
    return Memory(best, size, least, peak)


def lower_bound(values: Sequence[Lifetime]) -> tuple[int, int]:
    """The most bytes that are alive at once, and the first call at which they are."""
    calls = range(max((v.last for v in values), default=-1) + 1)
    alive = [sum(v.size for v in values if v.first <= i <= v.last) for i in calls]
    most = max(alive, default=0)
    return most, alive.index(most) if alive else 0


def extent(values: Sequence[Lifetime], offsets: Mapping[str, int]) -> int:
    """Bytes of an arena with these offsets."""
    return max((offsets[v.name] + v.size for v in values), default=0)


def _candidates(values: Sequence[Lifetime]) -> list[dict[str, int]]:
    orders = (
        sorted(values, key=lambda v: (-v.size, v.first)),
        sorted(values, key=lambda v: (v.first, -v.size)),
        sorted(values, key=lambda v: (-v.size * (v.last - v.first + 1), v.first)),
        sorted(values, key=lambda v: (v.first - v.last, -v.size)),
    )
    return [*map(place_in_order, orders), reuse_blocks(values)]


def reuse_blocks(values: Sequence[Lifetime]) -> dict[str, int]:
    """The plan of TVM's StaticPlanBlockMemory: a value takes a whole block, which may grow.

    The smallest free block that is large enough, else the largest that is not.
    """
    sizes: list[int] = []
    until: list[int] = []
    block_of: dict[str, int] = {}
    for value in sorted(values, key=lambda v: v.first):
        free = [b for b in range(len(sizes)) if until[b] < value.first]
        large = [b for b in free if value.size <= sizes[b] <= MATCH * value.size]
        small = [b for b in free if value.size / MATCH <= sizes[b] < value.size]
        if large:
            block = min(large, key=lambda b: sizes[b])
        elif small:
            block = max(small, key=lambda b: sizes[b])
        else:
            block = len(sizes)
            sizes.append(0)
            until.append(0)
        sizes[block], until[block] = max(sizes[block], value.size), value.last
        block_of[value.name] = block
    starts = [sum(sizes[:b]) for b in range(len(sizes))]
    return {name: starts[block] for name, block in block_of.items()}
