"""Meeting a latency budget on a device that is not here: price, solve, price exactly, correct.

In: a `Solver`, its budget, and perhaps how units are scored again. Out: what was `Found`.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprune.budget import Budget
from hwprune.calibrate import fit
from hwprune.capture import Program
from hwprune.cost import Cost
from hwprune.estimate import Estimate, describe_model, estimate_network
from hwprune.gradual import Gradual, approach_latency
from hwprune.obtain import open_table
from hwprune.plan import Plan
from hwprune.prepare import Prepared, carry_out, measure_kernels
from hwprune.price import latency_costs
from hwprune.problem import Allocation
from hwprune.progress import Progress
from hwprune.reach import check_latency
from hwprune.solver import Solver
from hwprune.turns import Turns


@dataclass(frozen=True)
class Found:
    """A plan, the smaller program, and its predicted latency."""

    allocation: Allocation
    plan: Plan
    program: Program
    estimate: Estimate
    steps: int = 1  # that units were scored in


def meet_by_prediction(
    solver: Solver, budget: Budget, progress: Progress, gradual: Gradual | None = None
) -> Found:
    """Solve until the latency at the plan's exact sizes, not only interpolated, fits the budget.

    `gradual` scores the units again on the way. Raises BudgetError where no plan fits.
    """
    prepared = solver.prepared
    target, threads = prepared.target, prepared.threads
    with open_table(target) as table:
        with progress.stage("check the budget") as advance:
            first = check_latency(prepared, table, budget, advance)
        with progress.stage("predict kernels") as advance:
            kernels = first.then(measure_kernels(prepared, table, advance))

        def priced(near: Prepared) -> tuple[Cost, ...]:
            if near is not prepared:
                measure_kernels(near, table, lambda done, total: None)
            return latency_costs(near.sites, near.candidates, table, threads, stepped=near.stepped)

        broad = priced(prepared)
        dense = estimate_network(prepared.program, target, threads, table, broad, prepared.full)
        goal_us = budget.absolute(dense.median_us)
        total_dense = sum(cost.at(prepared.full) for cost in broad)
        scale = fit([(total_dense, dense.median_us)])

        solver, costs, steps = approach_latency(
            gradual, solver, priced, scale, goal_us, dense.median_us, progress
        )
        total_dense = sum(cost.at(prepared.full) for cost in costs)
        turns = Turns(goal_us, scale, [(total_dense, dense.median_us)], over=1.0)
        best: Found | None = None
        again = True
        while again:
            calibration = turns.calibration
            with progress.stage(f"search, turn {turns.done + 1}"):
                chosen = solver.solve(costs, calibration, goal_us)
                plan, program = carry_out(prepared, chosen.kept, chosen.predicted)
                widths = chosen.widths()
                pruned = estimate_network(program, target, threads, table, costs, widths)
            total = sum(cost.at(widths) for cost in costs)
            again = turns.learn(total, pruned.median_us, full=solver.complete(chosen))
            described = describe_model(target, threads)
            estimate = Estimate(
                dense, pruned, described, costs, calibration, kernels, turns.done, broad
            )
            best = _better(best, Found(chosen, plan, program, estimate, steps), goal_us)
    assert best is not None
    return best


def _better(best: Found | None, new: Found, goal_us: float) -> Found:
    """Within the budget the one that keeps more; otherwise the one that is nearer to it."""
    if best is None:
        return new
    times = [found.estimate.pruned.median_us for found in (best, new)]
    if max(times) <= goal_us:
        return max(best, new, key=lambda found: found.allocation.objective)
    return best if times[0] <= times[1] else new
