"""Meeting a latency budget: price, solve, compile, measure, and correct until the budget holds.

In: a `Prepared` network and its budgets. Out: an `Outcome` with the smaller program and what it
was predicted and measured to take. Kernels are timed alone (once, kept in the table), their sum is
calibrated against the network, and a plan that misses the budget teaches the calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from hwprune.allocate import check_reachable
from hwprune.bench import Bench, Network, Pair, is_timed, open_bench
from hwprune.budget import LATENCY, Budget
from hwprune.build import Build, build
from hwprune.calibrate import (
    Calibration,
    context_corrections,
    fit,
    load_calibration,
    save_calibration,
)
from hwprune.capture import Program, fingerprint
from hwprune.cost import Cost
from hwprune.estimate import Estimate
from hwprune.estimate_search import meet_by_prediction
from hwprune.gradual import Gradual, approach, approach_latency, least_share
from hwprune.measure import Measured
from hwprune.plan import Plan
from hwprune.prepare import Prepared, carry_out, measure_kernels
from hwprune.price import Sources, count_sources, latency_costs
from hwprune.problem import Allocation
from hwprune.progress import Progress
from hwprune.reach import check_latency, way_out
from hwprune.remote.address import Boards
from hwprune.solver import Solver, out_of_reach
from hwprune.table import LatencyTable
from hwprune.threshold import Weak, discount
from hwprune.turns import OVER, Turns


@dataclass(frozen=True)
class Timing:
    """What was measured and predicted on the way to a latency budget."""

    pair: Pair
    dense_predicted_us: float
    pruned_predicted_us: float
    costs: tuple[Cost, ...]
    calibration: Calibration
    kernels: Measured
    dense: Build
    pruned: Build
    attempts: int
    profiles: tuple[Mapping[str, float], Mapping[str, float]]
    broad: tuple[Cost, ...]  # over all candidate widths; `costs` may be of those near the plan
    board: str = ""  # or GPU that ran the networks, in a line; empty for this processor
    warnings: tuple[str, ...] = ()

    @property
    def sources(self) -> Sources:
        """How the kernel latencies were found."""
        return count_sources(self.costs)


@dataclass(frozen=True)
class Outcome:
    """The chosen plan, the smaller program, and the timing where latency was budgeted.

    For a device that is not here there is an `estimate` in place of the timing.
    """

    allocation: Allocation
    plan: Plan
    program: Program
    timing: Timing | None
    estimate: Estimate | None = None
    steps: int = 1  # that units were scored in


def search(
    prepared: Prepared,
    scores: Mapping[str, np.ndarray],
    budgets: Mapping[str, Budget],
    progress: Progress,
    weak: Weak | None = None,
    boards: Boards | None = None,
    gradual: Gradual | None = None,
) -> Outcome:
    """Find and build the plan that keeps the most importance under the budgets, no `weak` units.

    A latency is measured on `boards`, or here where they are None, or predicted where neither is.
    `gradual` scores the units again on the way.

    Raises BudgetError: before any measurement where MACs or parameters cannot be met, after that
    of the narrowest and the full network's kernels where a latency cannot.
    """
    fixed = {r: b.absolute(prepared.dense(r)) for r, b in budgets.items() if r != LATENCY}
    weak = weak or {}
    solver = Solver(prepared, discount(scores, weak), fixed, weak)
    check_reachable(solver.counted)
    if LATENCY in budgets:
        if not is_timed(prepared.target, boards):
            found = meet_by_prediction(solver, budgets[LATENCY], progress, gradual)
            return Outcome(
                found.allocation, found.plan, found.program, None, found.estimate, found.steps
            )
        with open_bench(prepared.target, prepared.threads, boards) as bench:
            return _Loop(solver, budgets[LATENCY], progress, gradual).run(bench)
    near, steps = approach(
        gradual, solver, least_share(solver), lambda eased, _: eased.count(), progress
    )
    with progress.stage("allocate"):
        chosen = near.count()
    with progress.stage("rewrite"):
        plan, program = carry_out(prepared, chosen.kept, chosen.predicted)
    return Outcome(chosen, plan, program, None, None, steps)


@dataclass(frozen=True)
class Begun:
    """What there is before the first turn: the kernels' rows, the dense profile, all prices."""

    kernels: Measured
    profile: Mapping[str, float]
    broad: tuple[Cost, ...]


class _Loop:
    """Solve, build, measure, correct: a few turns until the measured latency fits the budget."""

    def __init__(
        self, solver: Solver, budget: Budget, progress: Progress, gradual: Gradual | None
    ) -> None:
        self.prepared, self.solver, self.budget = solver.prepared, solver, budget
        self.progress, self.gradual = progress, gradual
        self.steps = 1

    def run(self, bench: Bench) -> Outcome:
        prepared, progress, table = self.prepared, self.progress, bench.table
        kernels = self._kernels(bench)
        with progress.stage("compile dense"):
            dense = Network(
                build(prepared.program, prepared.target, prepared.threads), prepared.program
            )
        profile = bench.profile(dense)
        dense_us = bench.latency_us(dense)
        calibration, broad = self._calibrate(table, profile, dense_us)
        costs, more = self._approach(bench, calibration, broad, dense_us)
        begun = Begun(kernels.then(more) if more is not None else kernels, profile, broad)
        outcome = self._turns(bench, costs, calibration, dense, dense_us, begun)
        timing = outcome.timing
        assert timing is not None
        save_calibration(table, fingerprint(prepared.program), prepared.threads, timing.calibration)
        return outcome

    def _kernels(self, bench: Bench) -> Measured:
        """Rows for all kernels; a budget that they show to be hopeless is refused at once.

        Rows of a GPU may be a model's, which is not believed then: the narrowest network is timed.
        """
        prepared, progress, table = self.prepared, self.progress, bench.table
        if bench.gpu is not None:
            with progress.stage("price kernels") as advance:
                return measure_kernels(prepared, table, advance)
        with progress.stage("check the budget") as advance:
            first = check_latency(prepared, table, self.budget, advance, bench.boards)
        with progress.stage("measure kernels") as advance:
            return first.then(measure_kernels(prepared, table, advance, bench.boards))

    def _calibrate(
        self, table: LatencyTable, profile: Mapping[str, float], dense_us: float
    ) -> tuple[Calibration, tuple[Cost, ...]]:
        prepared = self.prepared
        known = load_calibration(table, fingerprint(prepared.program), prepared.threads)
        price = partial(
            latency_costs, prepared.sites, prepared.candidates, table, prepared.threads,
            stepped=prepared.stepped,
        )  # fmt: skip
        corrections = (
            known.corrections if known else context_corrections(price(), prepared.full, profile)
        )
        costs = price(corrections)
        total = sum(cost.at(prepared.full) for cost in costs)
        start = known or Calibration(corrections=corrections, runs=1)
        today = dense_us / start.network_us(total)  # the machine's speed is not that of last time
        overhead, factor = start.overhead_us * today, start.factor * today
        return replace(start, overhead_us=overhead, factor=factor), costs

    def _approach(
        self, bench: Bench, calibration: Calibration, broad: tuple[Cost, ...], dense_us: float
    ) -> tuple[tuple[Cost, ...], Measured | None]:
        """Costs near the plan that is sought, and what was measured for them."""
        done: list[Measured] = []

        def priced(near: Prepared) -> tuple[Cost, ...]:
            if near is self.prepared:
                return broad
            with self.progress.stage("measure kernels") as advance:
                found = measure_kernels(near, bench.table, advance, bench.boards)
            done.append(found if not done else done[-1].beside(found))
            return latency_costs(
                near.sites, near.candidates, bench.table, near.threads, calibration.corrections,
                stepped=near.stepped,
            )  # fmt: skip

        goal_us = self.budget.absolute(dense_us)
        self.solver, costs, self.steps = approach_latency(
            self.gradual, self.solver, priced, calibration, goal_us, dense_us, self.progress
        )
        return costs, done[-1] if done else None

    def _turns(
        self,
        bench: Bench,
        costs: tuple[Cost, ...],
        calibration: Calibration,
        dense: Network,
        dense_us: float,
        begun: Begun,
    ) -> Outcome:
        prepared = self.prepared
        goal_us = self.budget.absolute(dense_us)
        total_dense = sum(cost.at(prepared.full) for cost in costs)
        rough = bench.gpu is not None
        turns = Turns(goal_us, calibration, [(total_dense, dense_us)], rough)
        best: Outcome | None = None
        again = True
        while again:
            calibration = turns.calibration
            with self.progress.stage(f"search, turn {turns.done + 1}"):
                chosen, narrowest = self.solver.aim(costs, calibration, goal_us)
                plan, program = carry_out(prepared, chosen.kept, chosen.predicted)
            with self.progress.stage(f"compile, turn {turns.done + 1}"):
                pruned = Network(build(program, prepared.target, prepared.threads), program)
                pair = bench.pair(dense, pruned)
            if narrowest and turns.hopeless(pair.ratio * dense_us):
                raise out_of_reach(goal_us, pair.ratio, dense_us, way_out(prepared))
            total = sum(cost.at(chosen.widths()) for cost in costs)
            again = turns.learn(
                total, pair.ratio * dense_us, narrowest=narrowest, full=self.solver.complete(chosen)
            )
            timing = Timing(
                pair,
                calibration.network_us(total_dense),
                calibration.network_us(total),
                costs,
                fit(turns.runs, calibration.corrections),
                begun.kernels,
                dense.build,
                pruned.build,
                turns.done,
                (begun.profile, bench.profile(pruned)),
                begun.broad,
                bench.board,
                bench.warnings,
            )
            outcome = Outcome(chosen, plan, program, timing, None, self.steps)
            best = _better(best, outcome, goal_us / dense_us)
        assert best is not None
        return best


def _better(best: Outcome | None, new: Outcome, share: float) -> Outcome:
    """Within the budget the one that keeps more; otherwise the one that is nearer to it."""
    if best is None or best.timing is None or new.timing is None:
        return new
    ratios = [o.timing.pair.ratio / share for o in (best, new) if o.timing]
    within = [r <= OVER for r in ratios]
    if all(within):
        return max(best, new, key=lambda o: o.allocation.objective)
    if any(within):
        return best if within[0] else new
    return best if ratios[0] <= ratios[1] else new
