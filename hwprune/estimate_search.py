"""Meeting a latency budget on a device that is not here: price, solve, price exactly, correct.

In: a `Prepared` network, its budget, and how a plan is solved for. Out: what was `Found`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hwprune.budget import Budget
from hwprune.calibrate import Calibration, fit
from hwprune.capture import Program, fingerprint
from hwprune.cost import Cost
from hwprune.estimate import Estimate, describe_model, estimate_network
from hwprune.obtain import open_table
from hwprune.plan import Plan
from hwprune.prepare import Prepared, measure_kernels
from hwprune.price import latency_costs
from hwprune.problem import Allocation
from hwprune.progress import Progress
from hwprune.reach import check_latency
from hwprune.rewrite import rewrite

TURNS = 3
NEAR = 0.95  # of the budget that is used at least, unless there is nothing to add
Solve = Callable[[tuple[Cost, ...], Calibration, float], Allocation]


@dataclass(frozen=True)
class Found:
    """A plan, the smaller program, and its predicted latency."""

    allocation: Allocation
    plan: Plan
    program: Program
    estimate: Estimate


def meet_by_prediction(
    prepared: Prepared,
    budget: Budget,
    progress: Progress,
    solve: Solve,
    complete: Callable[[Allocation], bool],
) -> Found:
    """Solve until the latency at the plan's exact sizes, not only interpolated, fits the budget.

    `complete` says that a plan has all there is to keep. Raises BudgetError where no plan fits.
    """
    target, threads = prepared.target, prepared.threads
    with open_table(target) as table:
        with progress.stage("check the budget") as advance:
            first = check_latency(prepared, table, budget, advance)
        with progress.stage("predict kernels") as advance:
            kernels = first.then(measure_kernels(prepared, table, advance))
        costs = latency_costs(
            prepared.sites, prepared.candidates, table, threads, stepped=prepared.stepped
        )
        dense = estimate_network(prepared.program, target, threads, table, costs, prepared.full)
        goal_us = budget.absolute(dense.median_us)
        runs = [(sum(cost.at(prepared.full) for cost in costs), dense.median_us)]
        best: Found | None = None
        for turn in range(1, TURNS + 1):
            calibration = fit(runs)
            with progress.stage(f"search, turn {turn}"):
                chosen = solve(costs, calibration, goal_us)
                plan, program = carry_out(prepared, chosen)
                widths = chosen.widths()
                pruned = estimate_network(program, target, threads, table, costs, widths)
            described = describe_model(target, threads)
            estimate = Estimate(dense, pruned, described, costs, calibration, kernels, turn)
            best = _better(best, Found(chosen, plan, program, estimate), goal_us)
            runs.append((sum(cost.at(widths) for cost in costs), pruned.median_us))
            share = pruned.median_us / goal_us
            if NEAR <= share <= 1.0 or (share < NEAR and complete(chosen)):
                break
    assert best is not None
    return best


def carry_out(prepared: Prepared, chosen: Allocation) -> tuple[Plan, Program]:
    """The plan of an allocation, and the smaller program."""
    forms = prepared.coupling.forms
    plan = Plan(fingerprint(prepared.program), chosen.kept, dict(chosen.predicted), forms)
    return plan, rewrite(prepared.program, prepared.coupling, plan)


def _better(best: Found | None, new: Found, goal_us: float) -> Found:
    """Within the budget the one that keeps more; otherwise the one that is nearer to it."""
    if best is None:
        return new
    times = [found.estimate.pruned.median_us for found in (best, new)]
    if max(times) <= goal_us:
        return max(best, new, key=lambda found: found.allocation.objective)
    return best if times[0] <= times[1] else new
