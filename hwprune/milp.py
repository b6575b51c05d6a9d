"""The mixed-integer program of an allocation problem, solved by HiGHS through SciPy.

In: a `Problem`. Out: widths that keep the most importance under budgets, and a bound on any.
One binary variable per candidate width; the cost of a kernel over two sizes is a table whose
cells are continuous variables consistent with the widths on both sides (the marginals of a joint
distribution), so that only the widths are integer. A size that sums several groups (a
concatenation) is a convex combination of its grid. Within a branch all of these add up to the
variable of the branch instead of one: without it there is no width, no size and no cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from hwprune.cost import Cost
from hwprune.coupling import Extent
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
        self.sizes: dict[tuple[Extent, str], dict[int, int]] = {}  # (extent, gate) -> size -> var.
        self.there: dict[str, int] = {}  # branch -> the variable that says it is kept
        self.objective: dict[int, float] = {}
        branches = {g for g, options in problem.candidates.items() if 0 in options}
        for group in sorted(problem.candidates, key=lambda g: g not in branches):
            self._group(group)
        for inner in sorted(branches & problem.gates.keys()):
            outer = self.there[problem.gates[inner]]
            self.rows.add([(self.there[inner], 1.0), (outer, -1.0)], -1, 0)
        self.budget_rows = {r: self._budget(r) for r in problem.budgets}

    def relax(self, budgets: Mapping[str, float], margin: int = 1) -> Relaxation | None:
        """The linear relaxation: a bound, and the candidates around what it mixes."""
        result = self._run(budgets, 0.0, np.inf, np.ones(self.count), np.zeros(self.count))
        if result.x is None:
            return None
        near: dict[str, range] = {}
        for group, options in self.widths.items():
            used = [i for i, (column, _) in enumerate(options) if result.x[column] > 1e-6]
            used = used or list(range(len(options)))  # in a branch that is not there
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
        widths = {group: self._width(group, result.x) for group in self.widths}
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
        self.widths[group] = list(zip(columns, options, strict=True))
        if 0 in options:
            self.there[group] = dict(zip(options, columns, strict=True))[1]
            self._sum_to(columns, "")
        else:
            self._sum_to(columns, self.problem.gates.get(group, ""))
        values = self.problem.values(group)
        self.objective.update(zip(columns, map(float, values), strict=True))

    def _sum_to(self, columns: Sequence[int], gate: str) -> None:
        """Variables add up to one, or to nothing without the branch that they belong to."""
        if gate:
            self.rows.add([*((c, 1.0) for c in columns), (self.there[gate], -1.0)], 0, 0)
        else:
            self.rows.add([(c, 1.0) for c in columns], 1, 1)

    def _width(self, group: str, x: np.ndarray) -> int:
        """The width that a solution gives a group: 0 where its branch is not there."""
        gate = self.problem.gates.get(group, "")
        if gate and not self._width(gate, x):
            return 0
        return max(self.widths[group], key=lambda option: float(x[option[0]]))[1]

    def _size_variables(self, extent: Extent, grid: np.ndarray, gate: str) -> dict[int, int]:
        """One variable per size of an extent: the widths' own, or a convex combination.

        Within a branch, those of a group outside are at most the group's own.
        """
        if (extent, gate) in self.sizes:
            return self.sizes[extent, gate]
        if len(extent.terms) == 1:
            group, coefficient = extent.terms[0]
            found = {extent.const + coefficient * w: c for c, w in self.widths[group]}
            if gate != self.problem.gates.get(group, ""):
                own = found
                found = dict(zip(own, self._variables(len(own)), strict=True))
                self._sum_to(list(found.values()), gate)
                for size, column in found.items():
                    self.rows.add([(column, 1.0), (own[size], -1.0)], -1, 0)
        else:
            columns = self._variables(len(grid))
            found = dict(zip(map(int, grid), columns, strict=True))
            self._sum_to(columns, gate)
            self._mix(extent, found, gate)
        self.sizes[extent, gate] = found
        return found

    def _mix(self, extent: Extent, sizes: Mapping[int, int], gate: str) -> None:
        """The sizes of a convex combination are on average the extent, unless its branch goes."""
        terms = [(column, float(size)) for size, column in sizes.items()]
        for group, coefficient in extent.terms:
            terms += [(c, -float(coefficient * w)) for c, w in self.widths[group]]
        if not gate:
            self.rows.add(terms, extent.const, extent.const)
            return
        slack, y = float(max(sizes)), self.there[gate]  # no bound where y is 0
        self.rows.add([*terms, (y, -slack)], extent.const - slack, np.inf)
        self.rows.add([*terms, (y, slack)], -np.inf, extent.const + slack)

    def _budget(self, resource: str) -> tuple[int, float]:
        """The row of a budget (scaled to one) and the cost that does not vary."""
        scale = 1.0 / self.problem.budgets[resource]
        fixed = 0.0
        linear: dict[int, float] = {}
        pairs: dict[tuple[Extent, Extent, str], tuple[Cost, np.ndarray]] = {}
        for cost in self.problem.costs[resource]:
            if not cost.axes and cost.gate:
                column = self.there[cost.gate]
                linear[column] = linear.get(column, 0.0) + cost.count * float(cost.values)
            elif not cost.axes:
                fixed += cost.count * float(cost.values)
            elif len(cost.axes) == 1:
                table = zip(map(int, cost.grid[0]), cost.values, strict=True)
                columns = self._size_variables(cost.axes[0], cost.grid[0], cost.gate)
                for size, value in table:
                    column = columns[size]
                    linear[column] = linear.get(column, 0.0) + cost.count * float(value)
            else:
                key = (cost.axes[0], cost.axes[1], cost.gate)
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
            self._size_variables(axis, grid, cost.gate)
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
