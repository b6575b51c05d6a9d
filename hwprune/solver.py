"""What a latency is solved for with: kernels' costs and a calibration in, an allocation out.

In: a `Prepared` network, scores, other budgets and what a threshold discards. Out: `Allocation`s.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hwprune.allocate import allocate
from hwprune.budget import LATENCY, MACS, PARAMS
from hwprune.calibrate import Calibration
from hwprune.cost import Cost
from hwprune.errors import BudgetError
from hwprune.prepare import Prepared
from hwprune.problem import Allocation, Problem
from hwprune.threshold import Weak, without


@dataclass(frozen=True)
class Solver:
    """Allocates under a latency and, by resource, `fixed` budgets of MACs and parameters."""

    prepared: Prepared
    scores: Mapping[str, np.ndarray]
    fixed: Mapping[str, float]
    weak: Weak

    def solve(
        self, costs: tuple[Cost, ...], calibration: Calibration, goal_us: float
    ) -> Allocation:
        """Allocate in the network's own microseconds: kernels scaled, overhead as a constant.

        Raises BudgetError where no widths meet the budgets.
        """
        return self._allocated(self.problem(costs, calibration, goal_us))

    @property
    def counted(self) -> Problem:
        """What `count` solves: without a latency."""
        prepared = self.prepared
        costs = {MACS: prepared.macs, PARAMS: prepared.params}
        return Problem(self.scores, prepared.candidates, costs, self.fixed, prepared.gates)

    def count(self) -> Allocation:
        """Allocate under the budgets of what is counted alone: of MACs and parameters.

        Raises BudgetError where no widths meet them.
        """
        return self._allocated(self.counted)

    def _allocated(self, problem: Problem) -> Allocation:
        chosen = allocate(
            problem.scores, problem.candidates, problem.costs, problem.budgets, gates=problem.gates
        )
        return without(chosen, self.weak, problem)

    def complete(self, chosen: Allocation) -> bool:
        """Whether a threshold, not a budget, says what goes: there is nothing to add then."""
        strong = {name: int((~mask).sum()) for name, mask in self.weak.items()}
        return bool(strong) and all(len(chosen.kept[n]) >= count for n, count in strong.items())

    def aim(
        self, costs: tuple[Cost, ...], calibration: Calibration, goal_us: float
    ) -> tuple[Allocation, bool]:
        """The allocation to build, and whether it is the narrowest there is.

        A calibration by one or two networks says little of much smaller ones: where it has none
        within the goal, the narrowest is built, and its measured latency decides.
        """
        try:
            return self.solve(costs, calibration, goal_us), False
        except BudgetError:
            problem = self.problem(costs, calibration, goal_us)
            narrowest = problem.smallest
            chosen = problem.allocation(narrowest, problem.worth(narrowest), time.perf_counter())
            return chosen, True

    def problem(self, costs: tuple[Cost, ...], calibration: Calibration, goal_us: float) -> Problem:
        """What `solve` solves."""
        prepared = self.prepared
        network = {
            LATENCY: network_costs(costs, calibration),
            MACS: prepared.macs,
            PARAMS: prepared.params,
        }
        budgets = {LATENCY: goal_us, **self.fixed}
        return Problem(self.scores, prepared.candidates, network, budgets, prepared.gates)


def network_costs(costs: tuple[Cost, ...], calibration: Calibration) -> tuple[Cost, ...]:
    """Kernel costs scaled to the network, and its overhead: they sum to network microseconds."""
    scaled = tuple(replace(c, values=c.values * calibration.factor) for c in costs)
    overhead = Cost("between kernels", (), (), np.array(calibration.overhead_us))
    return (*scaled, overhead)


def out_of_reach(goal_us: float, least: float, dense_us: float, hint: str) -> BudgetError:
    """That the narrowest network, measured at this share of the dense one, is still too slow."""
    return BudgetError(
        f"cannot be met: {goal_us / 1000:.6g} ms asked, {least * dense_us / 1000:.6g} ms is the "
        f"smallest reachable ({100 * least:.1f}% of the dense network, measured)",
        where="latency",
        hint=hint,
    )
