"""The mixed-integer program of an allocation problem, solved by HiGHS through SciPy.

In: a `Problem`. Out: widths that keep the most importance under budgets, and a bound on any.
One binary variable per candidate width; the cost of a kernel over two sizes is a table whose
cells are continuous variables consistent with the widths on both sides (the marginals of a joint
distribution), so that only the widths are integer. A size that sums several groups (a
concatenation) is a convex combination of its grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from hwprune.coupling import Extent
from hwprune.price import Cost
from hwprune.problem import Problem


@dataclass(frozen=True)
class Relaxation:
    """An upper bound on the importance, and the candidates (by position) worth a closer look."""

    bound: float
    near: Mapping[str, range]


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


class Model:
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

    def relax(self, budgets: Mapping[str, float], margin: int = 1) -> Relaxation | None:
        """The linear relaxation: a bound, and the candidates around what it mixes."""
        result = self._run(budgets, 0.0, np.inf, np.ones(self.count), np.zeros(self.count))
        if result.x is None:
            return None
        near: dict[str, range] = {}
        for group, options in self.widths.items():
            used = [i for i, (column, _) in enumerate(options) if result.x[column] > 1e-6]
            near[group] = range(
                max(0, min(used) - margin), min(len(options), max(used) + margin + 1)
            )
        return Relaxation(-float(result.fun), near)

    def solve(
        self,
        budgets: Mapping[str, float],
        time_limit_s: float,
        gap: float,
        near: Mapping[str, range] | None = None,
    ) -> tuple[dict[str, int], float] | None:
        """(widths, upper bound on the importance), or None if there is no solution.

        `near` restricts each group to some of its candidates; the bound is then theirs alone.
        """
        upper, integrality = np.ones(self.count), np.zeros(self.count)
        integrality[self.integer] = 1
        for group, allowed in (near or {}).items():
            for i, (column, _) in enumerate(self.widths[group]):
                upper[column] = 1.0 if i in allowed else 0.0
        result = self._run(budgets, gap, time_limit_s, upper, integrality)
        if result.x is None:
            return None
        widths = {
            group: max(options, key=lambda o: result.x[o[0]])[1]
            for group, options in self.widths.items()
        }
        dual = result.mip_dual_bound if result.mip_dual_bound is not None else result.fun
        return widths, -float(dual)

    def _run(
        self,
        budgets: Mapping[str, float],
        gap: float,
        time_limit_s: float,
        upper: np.ndarray,
        integrality: np.ndarray,
    ) -> Any:
        """HiGHS on the program under these budgets, sizes' upper bounds and integrality."""
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
        options: dict[str, float] = {"mip_rel_gap": gap}
        if np.isfinite(time_limit_s):
            options["time_limit"] = time_limit_s
        return milp(
            goal,
            constraints=LinearConstraint(matrix, np.array(rows.low), high),
            integrality=integrality,
            bounds=Bounds(np.zeros(self.count), upper),
            options=options,
        )

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
