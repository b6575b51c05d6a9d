"""What a choice of widths costs: kernels (latency), multiply-accumulates and parameters.

In: `Site`s, the candidate widths of every group and a `LatencyTable`. Out: `Cost`s, tabulated over
at most two sizes each. A sparse set of kernels is measured; between measured points a latency is
interpolated, beyond them it is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from hwprune.coupling import Extent, Group
from hwprune.errors import TableError
from hwprune.interpolate import multilinear, sparse_points, spread
from hwprune.lower.spec import Workload
from hwprune.macs import macs
from hwprune.table import LatencyTable, Row, describe
from hwprune.workload import Couples, Site

Candidates = Mapping[str, Sequence[int]]
Corrections = Mapping[str, float]  # call name -> in-context time / isolated time


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


@dataclass(frozen=True)
class Sources:
    """How many kernel latencies a set of costs rests on, by how they were found."""

    measured: int
    interpolated: int
    modelled: int
    dense: int


def required(sites: Sequence[Site], candidates: Candidates) -> tuple[Workload, ...]:
    """The kernels to measure before `latency_costs`, each once."""
    found: dict[Workload, None] = {}
    for site in _merged(sites):
        for point in product(*_measured_points(site, candidates)):
            found[site.sample(point)] = None
    return tuple(found)


def extremes(
    sites: Sequence[Site], candidates: Candidates
) -> tuple[tuple[Workload, Workload, int], ...]:
    """Every kernel at the smallest and at the full widths, and how often it is launched."""
    found = []
    for site, names in _merged(sites).items():
        ends = [(points[0], points[-1]) for points in _measured_points(site, candidates)]
        narrow, full = (site.sample(tuple(e[i] for e in ends)) for i in (0, 1))
        found.append((narrow, full, len(names)))
    return tuple(found)


def latency_costs(
    sites: Sequence[Site],
    candidates: Candidates,
    table: LatencyTable,
    threads: int,
    corrections: Corrections | None = None,
) -> tuple[Cost, ...]:
    """Latency in microseconds of every kernel of the network, identical ones merged.

    `corrections` scale a call's isolated time to its time inside the network. Raises TableError
    where a needed row is absent or failed.
    """
    return tuple(
        _latency_cost(site, names, candidates, table, threads, corrections or {})
        for site, names in _merged(sites).items()
    )


def macs_costs(sites: Sequence[Site], candidates: Candidates) -> tuple[Cost, ...]:
    """Multiply-accumulates of every kernel, exact at candidate widths."""
    costs = []
    for site, names in _merged(sites).items():
        exact = _tabulate(site.axes, candidates, _macs_of(site))
        source = "dense" if site.dense else "exact"
        cost = replace(
            exact, name=names[0], count=len(names), calls=names, source=source, gate=site.branch
        )
        if cost.values.any():
            costs.append(cost)
    return tuple(costs)


def params_costs(
    coupling: Couples, parameters: Mapping[str, tuple[int, ...]], candidates: Candidates
) -> tuple[Cost, ...]:
    """Elements of every parameter (name -> shape of the original), exact at candidate widths."""
    counts: dict[tuple[tuple[Extent, ...], int, str], list[str]] = {}
    for name in parameters:
        extents = coupling.parameter_extents(name)
        varying = tuple(e for e in extents if e.terms)
        fixed = int(np.prod([e.const for e in extents if not e.terms], dtype=np.int64))
        gate = coupling.branch_of_parameter(name)
        counts.setdefault((varying, fixed, gate), []).append(name)
    return tuple(
        replace(_element_cost(names, varying, fixed, candidates), gate=gate)
        for (varying, fixed, gate), names in counts.items()
    )


def predict_us(
    costs: Sequence[Cost],
    widths: Mapping[str, int],
    finish: Callable[[float], float] = lambda total: total,
) -> tuple[float, float, float]:
    """(predicted, low, high) latency of the network; `finish` maps a sum of kernels to it."""
    total = sum(cost.at(widths) for cost in costs)
    bounds = [cost.bounds(widths) for cost in costs]
    return finish(total), finish(sum(b[0] for b in bounds)), finish(sum(b[1] for b in bounds))


def count_sources(costs: Sequence[Cost]) -> Sources:
    """How the values of latency costs were found."""
    measured = sum(int(c.measured.sum()) for c in costs if c.measured is not None)
    total = sum(c.values.size for c in costs if c.measured is not None)
    modelled = sum(c.values.size for c in costs if c.source == "model")
    dense = sum(1 for c in costs if c.source == "dense")
    return Sources(measured, total - measured, modelled, dense)


def full_widths(groups: Iterable[Group]) -> dict[str, int]:
    """Every group at its full width."""
    return {group.name: group.width for group in groups}


def _merged(sites: Sequence[Site]) -> dict[Site, tuple[str, ...]]:
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


def _axis_sizes(extent: Extent, candidates: Candidates) -> np.ndarray:
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


def _measured_points(site: Site, candidates: Candidates) -> tuple[np.ndarray, ...]:
    """The sizes of each axis whose combinations are measured: a subset of `_axis_sizes`."""
    axes = site.axes
    return tuple(sparse_points(_axis_sizes(axis, candidates), len(axes)) for axis in axes)


def _latency_cost(
    site: Site,
    names: tuple[str, ...],
    candidates: Candidates,
    table: LatencyTable,
    threads: int,
    corrections: Corrections,
) -> Cost:
    axes, coarse = site.axes, _measured_points(site, candidates)
    grid = tuple(_axis_sizes(axis, candidates) for axis in axes)
    rows = [_row(table, site.sample(point), threads) for point in product(*coarse)]
    shape = tuple(len(points) for points in coarse)
    scale = float(np.mean([corrections.get(name, 1.0) for name in names]))
    median, low, high = (
        scale * np.array([getattr(row, f"{which}_us") for row in rows]).reshape(shape)
        for which in ("median", "p10", "p90")
    )
    slack = roughness(coarse, median)
    points = list(product(*grid))
    size = tuple(len(sizes) for sizes in grid)
    known = np.array([all(v in c for v, c in zip(p, coarse, strict=True)) for p in points])
    known = known.reshape(size)

    def onto_grid(values: np.ndarray) -> np.ndarray:
        return np.array([multilinear(coarse, values, point) for point in points]).reshape(size)

    return Cost(
        name=names[0],
        axes=axes,
        grid=grid,
        values=onto_grid(median),
        count=len(names),
        low=onto_grid(low) * np.where(known, 1.0, max(0.0, 1.0 - slack)),
        high=onto_grid(high) * np.where(known, 1.0, 1.0 + slack),
        measured=known,
        source="dense" if site.dense else rows[0].source,
        calls=names,
        gate=site.branch,
    )


def roughness(grid: tuple[np.ndarray, ...], values: np.ndarray) -> float:
    """The largest relative error when an inner measured point is interpolated from the others."""
    worst = 0.0
    for axis, points in enumerate(grid):
        moved = np.moveaxis(values, axis, 0)
        for i in range(1, len(points) - 1):
            share = (points[i] - points[i - 1]) / (points[i + 1] - points[i - 1])
            guess = moved[i - 1] + share * (moved[i + 1] - moved[i - 1])
            worst = max(worst, float(np.max(np.abs(guess / moved[i] - 1.0))))
    return worst


def _row(table: LatencyTable, workload: Workload, threads: int) -> Row:
    table.latency_us(workload, threads)  # raises where there is no usable row
    row = table.get(workload, threads)
    if row is None:
        raise TableError("has no row for this kernel", where=describe(workload))
    return row


def _macs_of(site: Site) -> Callable[[tuple[int, ...]], float]:
    return lambda point: float(macs(site.sample(point)))


def _tabulate(
    axes: tuple[Extent, ...],
    candidates: Candidates,
    value: Callable[[tuple[int, ...]], float],
) -> Cost:
    """A cost with a value for every combination of the axes' sizes."""
    grid = tuple(_axis_sizes(axis, candidates) for axis in axes)
    points = [tuple(map(int, point)) for point in product(*grid)]
    values = np.array([value(point) for point in points], dtype=float)
    return Cost("", axes, grid, values.reshape(tuple(len(g) for g in grid)))


def _element_cost(
    names: list[str], varying: tuple[Extent, ...], fixed: int, candidates: Candidates
) -> Cost:
    axes = tuple(dict.fromkeys(varying))
    if len(axes) > 2:
        raise TableError("a parameter varies along more than two dimensions", where=names[0])

    def elements(point: tuple[int, ...]) -> float:
        size = dict(zip(axes, point, strict=True))
        return float(fixed * np.prod([size[e] for e in varying], dtype=np.int64))

    cost = _tabulate(axes, candidates, elements)
    return replace(cost, name=names[0], count=len(names), calls=tuple(names))
