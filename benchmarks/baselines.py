"""Other ways to choose widths under one budget, for comparison with `hwprune.allocate`.

In: a `Problem` with one budget, as the allocator gets it. Out: widths among its candidates that
meet the budget, exactly priced. Importance and costs are the problem's own. Where a method has a
setting, it gets the one that keeps the most importance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import coo_array

from hwprune.cost import Cost
from hwprune.problem import Problem

Widths = dict[str, int]
STEPS = (0.0025, 0.005, 0.01, 0.02)  # of the dense cost, that a greedy step saves at least
BISECTIONS = 24


def uniform(problem: Problem) -> Widths:
    """One factor for every group's width: the largest that meets the budget."""
    full = widest(problem)
    factors = {m / full[g] for g, o in problem.candidates.items() for m in _midpoints(o)}
    counts = ({g: f * w for g, w in full.items()} for f in sorted(factors, reverse=True))
    return _first_that_fits(problem, counts)


def threshold(problem: Problem) -> Widths:
    """Every unit whose score reaches one threshold: the lowest that meets the budget."""
    ascending = {g: np.sort(s) for g, s in problem.scores.items()}
    levels = {
        float(ascending[g][-math.ceil(m)])
        for g, options in problem.candidates.items()
        for m in _midpoints(options)
    }
    counts = (
        {g: float(len(s) - np.searchsorted(s, level)) for g, s in ascending.items()}
        for level in sorted(levels)
    )
    return _first_that_fits(problem, counts)


def greedy(problem: Problem) -> Widths:
    """Shrink one group at a time (Yang et al., NetAdapt, 2018), exactly re-priced at every step.

    A step saves at least a share of the dense cost and loses the least importance, or the least
    for what it saves; the share and the rule that keep the most count.
    """
    lookup = _Lookup.of(problem)
    ends = [_descend(problem, lookup, share, rate) for share in STEPS for rate in (False, True)]
    return _best(problem, ends)


def knapsack(problem: Problem) -> Widths:
    """Additive costs, every kernel's input held at its dense width (Shen et al., HALP, 2022).

    The knapsack is solved exactly. Its budget is bisected until the true price of the answer meets
    the true budget. Kernels that depend on one size alone are looked up as they are.
    """
    full = widest(problem)
    additive = additive_costs(problem)
    (budget,) = problem.budgets.values()
    low = sum(min(table.values()) for table in additive.values())
    high = sum(table[full[g]] for g, table in additive.items())
    found = [full] if problem.fits(full) else []
    for _ in range(BISECTIONS):
        limit = (low + high) / 2
        widths = solve_knapsack(problem, additive, limit)
        found.append(widths)
        low, high = (limit, high) if problem.fits(widths) else (low, limit)
        if high - low < 1e-6 * budget:
            break
    return _best(problem, found)


METHODS: Mapping[str, Callable[[Problem], Widths]] = {
    "uniform": uniform,
    "threshold": threshold,
    "greedy": greedy,
    "knapsack": knapsack,
}


def widest(problem: Problem) -> Widths:
    """Every group at its largest candidate: the dense network."""
    return {g: max(options) for g, options in problem.candidates.items()}


def narrowest(problem: Problem) -> Widths:
    """Every group at its smallest candidate."""
    return {g: min(options) for g, options in problem.candidates.items()}


def solve_knapsack(
    problem: Problem, additive: Mapping[str, Mapping[int, float]], limit: float
) -> Widths:
    """The widths of most importance whose additive costs sum to `limit` at most, proven best."""
    items = [(g, int(w)) for g, options in problem.candidates.items() for w in options]
    worth = np.concatenate([problem.values(g) for g in problem.candidates])
    scale = max(abs(limit), 1e-12)
    groups = {g: i for i, g in enumerate(problem.candidates)}
    rows = [groups[g] for g, _ in items] + [len(groups)] * len(items)
    columns = [*range(len(items))] * 2
    values = [1.0] * len(items) + [additive[g][w] / scale for g, w in items]
    matrix = coo_array((values, (rows, columns)), shape=(len(groups) + 1, len(items))).tocsr()
    ones = np.ones(len(groups))
    result = milp(
        -worth,
        constraints=LinearConstraint(matrix, [*ones, -np.inf], [*ones, limit / scale]),
        integrality=np.ones(len(items)),
        bounds=(0, 1),
        options={"mip_rel_gap": 1e-7, "time_limit": 30.0},
    )
    if result.x is None:
        return narrowest(problem)
    return {items[i][0]: items[i][1] for i in np.flatnonzero(result.x > 0.5)}


@dataclass(frozen=True)
class _Lookup:
    """The costs that each group's width takes part in, so that a change is priced quickly."""

    costs: Mapping[str, tuple[Cost, ...]]
    values: Mapping[str, Mapping[int, float]]  # importance by group and width

    @staticmethod
    def of(problem: Problem) -> _Lookup:
        by_group: dict[str, list[Cost]] = {g: [] for g in problem.candidates}
        for cost in _budgeted(problem):
            for group in {g for axis in cost.axes for g, _ in axis.terms}:
                by_group[group].append(cost)
        values = {
            g: dict(zip(map(int, options), map(float, problem.values(g)), strict=True))
            for g, options in problem.candidates.items()
        }
        return _Lookup({g: tuple(c) for g, c in by_group.items()}, values)

    def saved(self, widths: Mapping[str, int], group: str, width: int) -> float:
        """What a change of one group's width saves."""
        changed = {**widths, group: width}
        return sum(cost.at(widths) - cost.at(changed) for cost in self.costs[group])

    def lost(self, widths: Mapping[str, int], group: str, width: int) -> float:
        """The importance that a change of one group's width loses."""
        return self.values[group][widths[group]] - self.values[group][width]


def _descend(problem: Problem, lookup: _Lookup, share: float, rate: bool) -> Widths:
    """One run of the greedy method; the smallest widths where no step saves anything."""
    ((resource, budget),) = problem.budgets.items()
    widths = widest(problem)
    step = share * problem.price(resource, widths)
    while not problem.fits(widths):
        excess = problem.price(resource, widths) - budget
        wanted = min(step, excess)
        moves: list[tuple[float, str, int]] = []
        while not moves and wanted > 1e-9 * budget:
            moves = list(_moves(problem, lookup, widths, wanted, rate))
            wanted /= 2
        if not moves:
            return narrowest(problem)
        _, group, width = min(moves)
        widths[group] = width
    return widths


def _moves(
    problem: Problem, lookup: _Lookup, widths: Widths, wanted: float, rate: bool
) -> Iterable[tuple[float, str, int]]:
    """(loss, group, width): for each group the least change that saves what is wanted."""
    for group, options in problem.candidates.items():
        for width in sorted((int(w) for w in options if w < widths[group]), reverse=True):
            saved = lookup.saved(widths, group, width)
            if saved >= wanted:
                lost = lookup.lost(widths, group, width)
                yield lost / saved if rate else lost, group, width
                break


def additive_costs(problem: Problem) -> dict[str, dict[int, float]]:
    """Cost by group and width, every other group and every kernel's input at dense width.

    The part of the cost that is common to all groups is left out: only the budget would shift.
    """
    full = widest(problem)
    held: dict[str, list[Cost]] = {g: [] for g in problem.candidates}
    for cost in map(_hold_input, _budgeted(problem)):
        for group in {g for axis in cost.axes for g, _ in axis.terms}:
            held[group].append(cost)
    return {
        g: {int(w): sum(c.at({**full, g: int(w)}) for c in held[g]) for w in options}
        for g, options in problem.candidates.items()
    }


def _hold_input(cost: Cost) -> Cost:
    """The cost of a kernel at its dense input width: the last size of the first of two axes."""
    if len(cost.axes) < 2:
        return cost
    return replace(
        cost,
        axes=cost.axes[1:],
        grid=cost.grid[1:],
        values=cost.values[-1],
        low=None,
        high=None,
        measured=None,
    )


def _budgeted(problem: Problem) -> tuple[Cost, ...]:
    """The costs of the one resource that has a budget."""
    (resource,) = problem.budgets
    return tuple(problem.costs[resource])


def _midpoints(options: Iterable[int]) -> list[float]:
    """The counts from which the next wider candidate is the nearer one."""
    ordered = sorted(int(w) for w in options)
    return [(a + b) / 2 for a, b in pairwise(ordered)]


def _nearest(problem: Problem, counts: Mapping[str, float]) -> Widths:
    """Every count rounded to the nearest candidate."""
    widths = {}
    for group, options in problem.candidates.items():
        reached = sum(counts[group] >= m - 1e-9 for m in _midpoints(options))
        widths[group] = int(sorted(options)[reached])
    return widths


def _first_that_fits(problem: Problem, counts: Iterable[Mapping[str, float]]) -> Widths:
    """The first counts that meet the budget once rounded; the smallest widths if none do."""
    for wanted in counts:
        widths = _nearest(problem, wanted)
        if problem.fits(widths):
            return widths
    return narrowest(problem)


def _best(problem: Problem, found: Iterable[Widths]) -> Widths:
    """The widths that keep the most among those that meet the budget, else the smallest."""
    fitting = [widths for widths in found if problem.fits(widths)]
    return max(fitting, key=problem.worth, default=narrowest(problem))
