"""One arena for all that a network holds between its kernels, planned when it is compiled.

In: the `Fused` calls of a network. Out: an `Arena`, the offset of every value that a kernel writes
and a later one reads. Values whose lifetimes overlap do not overlap in memory; the largest is
placed first, at the lowest offset that is free while it lives (greedy by size; Pisarchyk and Lee,
"Efficient Memory Management for Deep Neural Net Inference", 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from hwprune.lower.fuse import Fused
from hwprune.lower.spec import ALIGNMENT, Kernel, Workload, numpy_type


@dataclass(frozen=True)
class Lifetime:
    """A value of `size` bytes, written by call `first` and last read by call `last`."""

    name: str
    size: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        """Whether both are alive at some call."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Arena:
    """`offsets[value]` in an arena of `size_bytes`.

    No plan needs less than `least_bytes`, which are alive at once while call `peak` runs.
    """

    size_bytes: int
    offsets: Mapping[str, int]
    least_bytes: int
    peak: str


def plan_arena(fused: Fused, kernels: Mapping[Workload, Kernel], lanes: int) -> Arena:
    """Place every value between kernels.

    Inputs, outputs and constants have memory of their own, and so has what a kernel of the fallback
    reads or writes: it takes no tensor from the middle of an arena.
    """
    alive = lifetimes(fused, kernels, lanes)
    offsets = place(alive)
    live = [sum(v.size for v in alive if v.first <= i <= v.last) for i in range(len(fused.calls))]
    least = max(live, default=0)
    return Arena(
        size_bytes=max((offsets[v.name] + v.size for v in alive), default=0),
        offsets=offsets,
        least_bytes=least,
        peak=fused.calls[live.index(least)].name if live else "",
    )


def lifetimes(fused: Fused, kernels: Mapping[Workload, Kernel], lanes: int) -> list[Lifetime]:
    """The values that kernels hand to later ones, by the order in which they are written."""

    def owner(name: str) -> str:
        while name in fused.aliases:
            name = fused.aliases[name]
        return name

    last = {owner(name): i for i, call in enumerate(fused.calls) for name in call.args}
    apart = {owner(name) for name in fused.outputs}
    for call in fused.calls:
        if not kernels[call.workload].placeable:
            apart |= {call.output, *map(owner, call.args)}
    found = []
    for i, call in enumerate(fused.calls):
        if call.output not in apart:
            spec = call.workload.output
            size = numpy_type(spec.dtype).itemsize * prod(spec.physical(lanes))
            size = -(-size // ALIGNMENT) * ALIGNMENT
            found.append(Lifetime(call.output, size, i, last.get(call.output, i)))
    return found


def place(values: Sequence[Lifetime]) -> dict[str, int]:
    """The offset of every value: the largest first, each as low as those it meets allow."""
    return place_in_order(sorted(values, key=lambda v: (-v.size, v.first)))


def place_in_order(values: Sequence[Lifetime]) -> dict[str, int]:
    """The offset of every value: in this order, each as low as those it meets allow."""
    placed: list[tuple[int, Lifetime]] = []
    for value in values:
        offset = 0
        for start, other in sorted((p for p in placed if p[1].meets(value)), key=lambda p: p[0]):
            if offset + value.size <= start:
                break
            offset = max(offset, start + other.size)
        placed.append((offset, value))
    return {value.name: offset for offset, value in placed}
