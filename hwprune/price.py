"""What a choice of widths costs in latency, kernel by kernel.

In: `Site`s, the candidate widths of every group and a `LatencyTable`. Out: `Cost`s. A sparse set of
kernels is measured; between measured points a latency is interpolated, beyond them it is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from hwprune.cost import Candidates, Cost, axis_sizes, merged
from hwprune.errors import TableError
from hwprune.interpolate import multilinear, sparse_points
from hwprune.lower.spec import Workload
from hwprune.table import SOURCES, LatencyTable, Row, describe
from hwprune.workload import Site

Corrections = Mapping[str, float]  # call name -> in-context time / isolated time


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
    for site in merged(sites):
        for point in product(*measured_points(site, candidates)):
            found[site.sample(point)] = None
    return tuple(found)


def finer(
    sites: Sequence[Site], candidates: Candidates, table: LatencyTable, threads: int
) -> tuple[Workload, ...]:
    """All widths of the kernels that a model prices, each once: to be had after `required`."""
    found: dict[Workload, None] = {}
    for site in merged(sites):
        if _is_modelled(site, candidates, table, threads):
            for point in product(*_every_point(site, candidates)):
                found[site.sample(point)] = None
    return tuple(found)


def extremes(
    sites: Sequence[Site], candidates: Candidates
) -> tuple[tuple[Workload, Workload, int], ...]:
    """Every kernel at the smallest and at the full widths, and how often it is launched."""
    found = []
    for site, names in merged(sites).items():
        ends = [(points[0], points[-1]) for points in measured_points(site, candidates)]
        narrow, full = (site.sample(tuple(e[i] for e in ends)) for i in (0, 1))
        found.append((narrow, full, len(names)))
    return tuple(found)


def measured_points(site: Site, candidates: Candidates) -> tuple[np.ndarray, ...]:
    """The sizes of each axis whose combinations are measured: a subset of `axis_sizes`."""
    axes = site.axes
    return tuple(sparse_points(axis_sizes(axis, candidates), len(axes)) for axis in axes)


def latency_costs(
    sites: Sequence[Site],
    candidates: Candidates,
    table: LatencyTable,
    threads: int,
    corrections: Corrections | None = None,
    *,
    stepped: bool = False,
) -> tuple[Cost, ...]:
    """Latency in microseconds of every kernel of the network, identical ones merged.

    `corrections` scale a call's isolated time to its time inside the network; `stepped` says that
    the table has the rows of `finer` as well. Raises TableError where a needed row is absent or
    failed.
    """
    found = []
    for site, names in merged(sites).items():
        fine = stepped and _is_modelled(site, candidates, table, threads)
        points = (_every_point if fine else measured_points)(site, candidates)
        scale = float(np.mean([(corrections or {}).get(name, 1.0) for name in names]))
        found.append(_latency_cost(site, names, candidates, table, threads, points, scale))
    return tuple(found)


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
    found = [c for c in costs if c.measured is not None and c.source != "model"]
    measured = sum(int(c.measured.sum()) for c in found if c.measured is not None)
    total = sum(c.values.size for c in found)
    modelled = sum(c.values.size for c in costs if c.source == "model")
    dense = sum(1 for c in costs if c.source == "dense")
    return Sources(measured, total - measured, modelled, dense)


def _every_point(site: Site, candidates: Candidates) -> tuple[np.ndarray, ...]:
    """All sizes of each axis."""
    return tuple(axis_sizes(axis, candidates) for axis in site.axes)


def _is_modelled(site: Site, candidates: Candidates, table: LatencyTable, threads: int) -> bool:
    """Whether a row that `required` asks for is a model's."""
    points = product(*measured_points(site, candidates))
    rows = (table.get(site.sample(point), threads) for point in points)
    return any(row is not None and row.source == SOURCES[-1] for row in rows)


def _latency_cost(
    site: Site,
    names: tuple[str, ...],
    candidates: Candidates,
    table: LatencyTable,
    threads: int,
    coarse: tuple[np.ndarray, ...],
    scale: float,
) -> Cost:
    axes = site.axes
    grid = tuple(axis_sizes(axis, candidates) for axis in axes)
    rows = [usable_row(table, site.sample(point), threads) for point in product(*coarse)]
    shape = tuple(len(points) for points in coarse)
    median, low, high = (
        scale * np.array([getattr(row, f"{which}_us") for row in rows]).reshape(shape)
        for which in ("median", "p10", "p90")
    )
    slack, source = roughness(coarse, median), weakest(row.source for row in rows)
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
        source="dense" if site.dense and source != SOURCES[-1] else source,
        calls=names,
        gate=site.branch,
    )


def weakest(sources: Iterable[str]) -> str:
    """The weakest of several sources: one row of a model makes the whole a model's."""
    return max(sources, key=SOURCES.index)


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


def usable_row(table: LatencyTable, workload: Workload, threads: int) -> Row:
    """The row of a kernel. Raises TableError where there is none, or it has failed."""
    table.latency_us(workload, threads)  # raises where there is no usable row
    row = table.get(workload, threads)
    if row is None:
        raise TableError("has no row for this kernel", where=describe(workload))
    return row
