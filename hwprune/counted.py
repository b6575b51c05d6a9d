"""What a choice of widths costs in multiply-accumulates and parameters: counted, not measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from hwprune.cost import Candidates, Cost, axis_sizes, merged
from hwprune.coupling import Extent
from hwprune.errors import TableError
from hwprune.macs import macs
from hwprune.workload import Couples, Site


def macs_costs(sites: Sequence[Site], candidates: Candidates) -> tuple[Cost, ...]:
    """Multiply-accumulates of every kernel, exact at candidate widths."""
    costs = []
    for site, names in merged(sites).items():
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


def _macs_of(site: Site) -> Callable[[tuple[int, ...]], float]:
    return lambda point: float(macs(site.sample(point)))


def _tabulate(
    axes: tuple[Extent, ...],
    candidates: Candidates,
    value: Callable[[tuple[int, ...]], float],
) -> Cost:
    """A cost with a value for every combination of the axes' sizes."""
    grid = tuple(axis_sizes(axis, candidates) for axis in axes)
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
