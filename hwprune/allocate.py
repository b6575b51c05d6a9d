"""Allocation: choose every group's width to keep the most importance under all budgets.

In: `Scores`, candidate widths, `Cost`s and budgets. Out: an `Allocation` with its optimality bound.
One binary variable per candidate width; the cost of a kernel over two sizes is a table whose
cells are continuous variables consistent with the widths on both sides (the marginals of a joint
distribution), so that only the widths are integer. Solved by HiGHS through SciPy, then priced
exactly. A size that sums several groups (a concatenation) is a convex combination of its grid.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import coo_array

from hwprune.budget import LATENCY
from hwprune.coupling import Extent
from hwprune.errors import BudgetError
from hwprune.price import Cost

Costs = Mapping[str, Sequence[Cost]]
ATTEMPTS = 6
MOST_WIDTHS = 16


@dataclass(frozen=True)
class Allocation:
    """Kept units per group, their importance, the bound on any allocation's, and exact costs."""

    kept: Mapping[str, tuple[int, ...]]
    objective: float
    bound: float
    gap: float
    seconds: float
    predicted: Mapping[str, float]

    def widths(self) -> dict[str, int]:
        """How many units each group keeps."""
        return {name: len(units) for name, units in self.kept.items()}


@dataclass(frozen=True)
class Problem:
    """What is to be solved: scores, candidate widths, costs and absolute budgets by resource."""

    scores: Mapping[str, np.ndarray]
    candidates: Mapping[str, Sequence[int]]
    costs: Costs
    budgets: Mapping[str, float]

    def values(self, group: str) -> np.ndarray:
        """Importance kept at every candidate width: the sum of the strongest units' scores."""
        ranked = np.sort(self.scores[group])[::-1]
        return np.concatenate([[0.0], np.cumsum(ranked)])[list(self.candidates[group])]

    def price(self, resource: str, widths: Mapping[str, int]) -> float:
        """The exact cost of a choice of widths."""
        return float(sum(cost.at(widths) for cost in self.costs[resource]))

    def worth(self, widths: Mapping[str, int]) -> float:
        """The importance kept by a choice of widths."""
        return float(sum(np.sort(s)[::-1][: widths[g]].sum() for g, s in self.scores.items()))

    def fits(self, widths: Mapping[str, int]) -> bool:
        """Whether every budget is met, exactly priced."""
        return all(self.price(r, widths) <= b * (1 + 1e-9) for r, b in self.budgets.items())

    def allocation(self, widths: Mapping[str, int], bound: float, started: float) -> Allocation:
        """The result for a choice of widths."""
        worth = self.worth(widths)
        order = {g: np.argsort(-s, kind="stable") for g, s in self.scores.items()}
        kept = {g: tuple(sorted(int(u) for u in o[: widths[g]])) for g, o in order.items()}
        gap = max(0.0, bound - worth) / max(abs(bound), 1e-12)
        predicted = {r: self.price(r, widths) for r in self.costs}
        seconds = time.perf_counter() - started
        return Allocation(kept, worth, bound, gap, seconds, predicted)


def allocate(
    scores: Mapping[str, np.ndarray],
    candidates: Mapping[str, Sequence[int]],
    costs: Costs,
    budgets: Mapping[str, float],
    *,
    time_limit_s: float = 10.0,
    gap: float = 0.002,
) -> Allocation:
    """The widths that keep the most importance under every budget at once.

    `budgets` are absolute, by resource (a key of `costs`). Raises BudgetError with the smallest
    reachable value if one cannot be met.
    """
    started = time.perf_counter()
    problem = Problem(scores, candidates, costs, budgets)
    full = {g: max(c) for g, c in candidates.items()}
    if problem.fits(full):
        return problem.allocation(full, problem.worth(full), started)
    check_reachable(problem)
    model = _Model(problem)
    bound = np.inf
    tightened = dict(budgets)
    for _ in range(ATTEMPTS):
        left = time_limit_s - (time.perf_counter() - started)
        solution = model.solve(tightened, max(left, 1.0), gap)
        if solution is None:
            break
        widths, dual = solution
        bound = min(bound, dual) if tightened == dict(budgets) else bound
        if problem.fits(widths):
            return problem.allocation(_fill(problem, widths), bound, started)
        for resource, budget in budgets.items():
            excess = problem.price(resource, widths) / budget
            if excess > 1:
                tightened[resource] /= excess * 1.0005
    widths = _descend(problem, full)
    return problem.allocation(_fill(problem, widths), min(bound, problem.worth(full)), started)


def check_reachable(problem: Problem) -> None:
    """Raise BudgetError if even the smallest widths exceed a budget; states what they reach."""
    smallest = {g: min(c) for g, c in problem.candidates.items()}
    full = {g: max(c) for g, c in problem.candidates.items()}
    for resource, budget in problem.budgets.items():
        least, dense = (problem.price(resource, w) for w in (smallest, full))
        if least > budget:
            unit, scale = ("ms", 1e-3) if resource == LATENCY else ("", 1.0)
            raise BudgetError(
                f"cannot be met: {budget * scale:.6g} {unit}".rstrip()
                + f" asked, {least * scale:.6g} {unit}".rstrip()
                + f" is the smallest reachable ({100 * least / dense:.1f}% of the dense network)",
                where=resource.removesuffix("_us"),
                hint="raise the budget",
            )


def _fill(problem: Problem, widths: Mapping[str, int]) -> dict[str, int]:
    """Widen groups one candidate at a time, best importance first, while everything fits."""
    current = dict(widths)
    improved = True
    while improved:
        improved = False
        steps = []
        for group, options in problem.candidates.items():
            wider = [w for w in options if w > current[group]]
            if wider:
                ranked = np.sort(problem.scores[group])[::-1]
                steps.append((-ranked[current[group] : wider[0]].sum(), group, wider[0]))
        for _, group, width in sorted(steps):
            trial = {**current, group: width}
            if problem.fits(trial):
                current, improved = trial, True
                break
    return current


def _descend(problem: Problem, widths: Mapping[str, int]) -> dict[str, int]:
    """Narrow groups greedily (least importance lost per cost saved) until everything fits."""
    current = dict(widths)
    while not problem.fits(current):
        over = {r: problem.price(r, current) / b for r, b in problem.budgets.items()}
        resource = max(over, key=lambda r: over[r])
        before = problem.price(resource, current)
        best: tuple[float, str, int] | None = None
        for group, options in problem.candidates.items():
            narrower = [w for w in options if w < current[group]]
            if not narrower:
                continue
            trial = {**current, group: narrower[-1]}
            saved = before - problem.price(resource, trial)
            lost = np.sort(problem.scores[group])[::-1][narrower[-1] : current[group]].sum()
            rate = lost / saved if saved > 0 else np.inf
            if best is None or rate < best[0]:
                best = (rate, group, narrower[-1])
        if best is None:
            check_reachable(problem)
            raise BudgetError("cannot be met together", hint="raise one of the budgets")
        current[best[1]] = best[2]
    return current


@dataclass
class _Rows:
    """Sparse constraint rows under construction: low <= row <= high."""

    row: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, terms: Sequence[tuple[int, float]], low: float, high: float) -> int:
        index = len(self.low)
        self.row += [index] * len(terms)
        self.column += [c for c, _ in terms]
        self.value += [v for _, v in terms]
        self.low.append(low)
        self.high.append(high)
        return index


class _Model:
    """The mixed-integer program of a problem; the budgets may change between solves."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.count = 0
        self.integer: list[int] = []
        self.rows = _Rows()
        self.widths: dict[str, list[tuple[int, int]]] = {}  # group -> (variable, width)
        self.sizes: dict[Extent, dict[int, int]] = {}  # extent -> size -> variable
        self.objective: dict[int, float] = {}
        for group in problem.candidates:
            self._group(group)
        self.budget_rows = {r: self._budget(r) for r in problem.budgets}

    def solve(
        self, budgets: Mapping[str, float], time_limit_s: float, gap: float
    ) -> tuple[dict[str, int], float] | None:
        """(widths, upper bound on the importance), or None if there is no solution."""
        rows = self.rows
        high = np.array(rows.high)
        for resource, budget in budgets.items():
            index, fixed = self.budget_rows[resource]
            high[index] = (budget - fixed) / self.problem.budgets[resource]
        matrix = coo_array(
            (rows.value, (rows.row, rows.column)), shape=(len(rows.low), self.count)
        ).tocsr()
        goal = np.zeros(self.count)
        for column, value in self.objective.items():
            goal[column] = -value
        integrality = np.zeros(self.count)
        integrality[self.integer] = 1
        result = milp(
            goal,
            constraints=LinearConstraint(matrix, np.array(rows.low), high),
            integrality=integrality,
            bounds=(0, 1),
            options={"time_limit": time_limit_s, "mip_rel_gap": gap},
        )
        if result.x is None:
            return None
        widths = {
            group: max(options, key=lambda o: result.x[o[0]])[1]
            for group, options in self.widths.items()
        }
        dual = result.mip_dual_bound if result.mip_dual_bound is not None else result.fun
        return widths, -float(dual)

    def _variables(self, count: int) -> range:
        first = self.count
        self.count += count
        return range(first, first + count)

    def _group(self, group: str) -> None:
        options = [int(w) for w in self.problem.candidates[group]]
        columns = self._variables(len(options))
        self.integer += columns
        self.rows.add([(c, 1.0) for c in columns], 1, 1)
        self.widths[group] = list(zip(columns, options, strict=True))
        values = self.problem.values(group)
        self.objective.update(zip(columns, map(float, values), strict=True))

    def _size_variables(self, extent: Extent, grid: np.ndarray) -> dict[int, int]:
        """One variable per size of an extent: the widths' own, or a convex combination."""
        if extent in self.sizes:
            return self.sizes[extent]
        if len(extent.terms) == 1:
            group, coefficient = extent.terms[0]
            found = {extent.const + coefficient * w: c for c, w in self.widths[group]}
        else:
            columns = self._variables(len(grid))
            found = dict(zip(map(int, grid), columns, strict=True))
            self.rows.add([(c, 1.0) for c in columns], 1, 1)
            terms = [(c, float(s)) for s, c in found.items()]
            for group, coefficient in extent.terms:
                terms += [(c, -float(coefficient * w)) for c, w in self.widths[group]]
            self.rows.add(terms, extent.const, extent.const)
        self.sizes[extent] = found
        return found

    def _budget(self, resource: str) -> tuple[int, float]:
        """The row of a budget (scaled to one) and the cost that does not vary."""
        scale = 1.0 / self.problem.budgets[resource]
        fixed = 0.0
        linear: dict[int, float] = {}
        pairs: dict[tuple[Extent, Extent], tuple[Cost, np.ndarray]] = {}
        for cost in self.problem.costs[resource]:
            if not cost.axes:
                fixed += cost.count * float(cost.values)
            elif len(cost.axes) == 1:
                table = zip(map(int, cost.grid[0]), cost.values, strict=True)
                columns = self._size_variables(cost.axes[0], cost.grid[0])
                for size, value in table:
                    column = columns[size]
                    linear[column] = linear.get(column, 0.0) + cost.count * float(value)
            else:
                key = (cost.axes[0], cost.axes[1])
                before = pairs[key][1] if key in pairs else 0.0
                pairs[key] = (cost, before + cost.count * cost.values)
        for cost, values in pairs.values():
            for column, value in self._joint(cost, values):
                linear[column] = linear.get(column, 0.0) + value
        terms = [(c, v * scale) for c, v in linear.items()]
        return self.rows.add(terms, -np.inf, 1.0), fixed

    def _joint(self, cost: Cost, values: np.ndarray) -> list[tuple[int, float]]:
        """Cells of a two-way table, consistent with the sizes on both sides."""
        sides = [
            self._size_variables(axis, grid)
            for axis, grid in zip(cost.axes, cost.grid, strict=True)
        ]
        columns = np.array(self._variables(values.size)).reshape(values.shape)
        for side, grid, cells in (
            (sides[0], cost.grid[0], columns),
            (sides[1], cost.grid[1], columns.T),
        ):
            for size, line in zip(map(int, grid), cells, strict=True):
                self.rows.add([*((int(c), 1.0) for c in line), (side[size], -1.0)], 0, 0)
        return [(int(c), float(v)) for c, v in zip(columns.ravel(), values.ravel(), strict=True)]
