"""A cost tabulated over sizes: of kernels, multiply-accumulates or parameters.

In: candidate widths of every group. Out: `Cost`s over at most two sizes each, linear between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwprune.coupling import Extent, Group
from hwprune.errors import TableError
from hwprune.interpolate import multilinear, spread
from hwprune.workload import Site

Candidates = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Cost:
    """A tabulated cost over zero, one or two extents; linear between grid points.

    `axes[i]` is an Extent (a channel count), `grid[i]` its ascending sampled values, and
    `values` has shape `tuple(len(g) for g in grid)` (a scalar array where nothing varies).
    `count` identical launches are summed. Unit of `values`: that of the resource (us, MACs, …).
    `low` and `high` bound each value where it is uncertain; `measured` says which are measured.
    Without the branch that `gate` names there is no cost.
    """

    name: str
    axes: tuple[Extent, ...]
    grid: tuple[np.ndarray, ...]
    values: np.ndarray
    count: int = 1
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    measured: np.ndarray | None = None  # bool, the shape of values; None where values are exact
    source: str = "exact"  # "exact" | "device" | "emulator" | "model" | "dense" (at full width)
    calls: tuple[str, ...] = ()
    gate: str = ""

    def at(self, widths: Mapping[str, int]) -> float:
        """The exact (re-priced) cost at these widths: multilinear inside the grid.

        Raises TableError outside the grid.
        """
        return self._at(self.values, widths)

    def bounds(self, widths: Mapping[str, int]) -> tuple[float, float]:
        """The interval that holds the cost at these widths. Raises TableError outside the grid."""
        low = self.values if self.low is None else self.low
        high = self.values if self.high is None else self.high
        return self._at(low, widths), self._at(high, widths)

    def _at(self, values: np.ndarray, widths: Mapping[str, int]) -> float:
        if self.gate and not widths[self.gate]:
            return 0.0
        point = [axis.at(widths) for axis in self.axes]
        for size, points in zip(point, self.grid, strict=True):
            if not points[0] <= size <= points[-1]:
                raise TableError(
                    f"a size of {size} lies outside [{points[0]}, {points[-1]}]", where=self.name
                )
        return self.count * multilinear(self.grid, values, point)


def full_widths(groups: Iterable[Group]) -> dict[str, int]:
    """Every group at its full width."""
    return {group.name: group.width for group in groups}


def merged(sites: Sequence[Site]) -> dict[Site, tuple[str, ...]]:
    """Sites that cost the same at every choice of widths -> the names of their calls."""
    first: dict[tuple[object, ...], Site] = {}
    names: dict[Site, tuple[str, ...]] = {}
    for site in sites:
        same = (
            site.call.workload, site.inputs, site.output, site.params, site.dense, site.branch
        )  # fmt: skip
        head = first.setdefault(same, site)
        names[head] = (*names.get(head, ()), site.call.name)
    return names


def axis_sizes(extent: Extent, candidates: Candidates) -> np.ndarray:
    """The sizes that an axis is tabulated at, ascending."""
    if len(extent.terms) == 1:
        group, coefficient = extent.terms[0]
        return np.array([extent.const + coefficient * w for w in sorted(set(candidates[group]))])
    low, high = (
        extent.const + sum(c * end(candidates[group]) for group, c in extent.terms)
        for end in (min, max)
    )
    return spread(low, high, step=gcd_step(extent, candidates))


def gcd_step(extent: Extent, candidates: Candidates) -> int:
    """The largest step that every sum of candidate widths (but the full ones) is a multiple of."""
    steps = [c * w for group, c in extent.terms for w in sorted(candidates[group])[:-1]]
    return int(np.gcd.reduce(steps)) if steps else 1
