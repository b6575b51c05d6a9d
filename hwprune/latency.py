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

from hwprune.allocate import allocate, check_reachable
from hwprune.bench import Bench, Network, Pair, is_timed, open_bench
from hwprune.budget import LATENCY, MACS, PARAMS, Budget
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
from hwprune.estimate_search import carry_out, meet_by_prediction
from hwprune.measure import Measured
from hwprune.plan import Plan
from hwprune.prepare import Prepared, measure_kernels
from hwprune.price import Sources, count_sources, latency_costs
from hwprune.problem import Allocation, Problem
from hwprune.progress import Progress
from hwprune.reach import check_latency
from hwprune.remote.address import Boards
from hwprune.solver import Solver, out_of_reach
from hwprune.table import LatencyTable
from hwprune.threshold import Weak, discount, without

CORRECTIONS = 3
GPU_CORRECTIONS = 6  # its kernels may have a model's prices, which are further off
OVER, UNDER = 1.01, 0.95  # measured over budgeted latency that is accepted


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


def search(
    prepared: Prepared,
    scores: Mapping[str, np.ndarray],
    budgets: Mapping[str, Budget],
    progress: Progress,
    weak: Weak | None = None,
    boards: Boards | None = None,
) -> Outcome:
    """Find and build the plan that keeps the most importance under the budgets, no `weak` units.

    A latency is measured on `boards`, or here where they are None, or predicted where neither is.

    Raises BudgetError: before any measurement where MACs or parameters cannot be met, after that
    of the narrowest and the full network's kernels where a latency cannot.
    """
    fixed = {r: b.absolute(prepared.dense(r)) for r, b in budgets.items() if r != LATENCY}
    costs = {MACS: prepared.macs, PARAMS: prepared.params}
    gates = prepared.gates
    scores = discount(scores, weak or {})
    problem = Problem(scores, prepared.candidates, costs, fixed, gates)
    check_reachable(problem)
    if LATENCY in budgets:
        loop = _Loop(prepared, scores, budgets[LATENCY], fixed, progress, weak or {})
        if not is_timed(prepared.target, boards):
            found = meet_by_prediction(
                prepared, budgets[LATENCY], progress, loop.solver.solve, loop.all_strong
            )
            return Outcome(found.allocation, found.plan, found.program, None, found.estimate)
        with open_bench(prepared.target, prepared.threads, boards) as bench:
            return loop.run(bench)
    with progress.stage("allocate"):
        chosen = allocate(scores, prepared.candidates, costs, fixed, gates=gates)
        chosen = without(chosen, weak or {}, problem)
    with progress.stage("rewrite"):
        plan, program = carry_out(prepared, chosen)
    return Outcome(chosen, plan, program, None)


class _Loop:
    """Solve, build, measure, correct: a few turns until the measured latency fits the budget."""

    def __init__(
        self,
        prepared: Prepared,
        scores: Mapping[str, np.ndarray],
        budget: Budget,
        fixed: Mapping[str, float],
        progress: Progress,
        weak: Weak,
    ) -> None:
        self.prepared, self.budget = prepared, budget
        self.progress, self.weak = progress, weak
        self.solver = Solver(prepared, scores, fixed, weak)

    def run(self, bench: Bench) -> Outcome:
        prepared, progress, table = self.prepared, self.progress, bench.table
        kernels = self._kernels(bench)
        with progress.stage("compile dense"):
            dense = Network(
                build(prepared.program, prepared.target, prepared.threads), prepared.program
            )
        profile = bench.profile(dense)
        dense_us = bench.latency_us(dense)
        calibration, costs = self._calibrate(table, profile, dense_us)
        outcome = self._turns(bench, costs, calibration, dense, dense_us, kernels, profile)
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

    def _turns(
        self,
        bench: Bench,
        costs: tuple[Cost, ...],
        calibration: Calibration,
        dense: Network,
        dense_us: float,
        kernels: Measured,
        profile: Mapping[str, float],
    ) -> Outcome:
        prepared = self.prepared
        goal_us = self.budget.absolute(dense_us)
        total_dense = sum(cost.at(prepared.full) for cost in costs)
        runs = [(total_dense, dense_us)]
        best: Outcome | None = None
        turn, most = 0, GPU_CORRECTIONS if bench.gpu else CORRECTIONS
        turns = most
        while turn < turns:
            turn += 1
            with self.progress.stage(f"search, turn {turn}"):
                chosen, narrowest = self.solver.aim(costs, calibration, goal_us)
                plan, program = carry_out(prepared, chosen)
            with self.progress.stage(f"compile, turn {turn}"):
                pruned = Network(build(program, prepared.target, prepared.threads), program)
                pair = bench.pair(dense, pruned)
            total = sum(cost.at(chosen.widths()) for cost in costs)
            predicted = calibration.network_us(total)
            runs.append((total, pair.ratio * dense_us))
            share = pair.ratio * dense_us / goal_us
            if narrowest and share > OVER:
                raise out_of_reach(goal_us, pair.ratio, dense_us)
            again = narrowest and turns > most
            turns += narrowest and turns == most  # it taught; what it taught is used
            calibration_next = fit(runs, calibration.corrections)
            timing = Timing(
                pair,
                calibration.network_us(total_dense),
                predicted,
                costs,
                calibration_next,
                kernels,
                dense.build,
                pruned.build,
                turn,
                (profile, bench.profile(pruned)),
                bench.board,
                bench.warnings,
            )
            outcome = Outcome(chosen, plan, program, timing)
            best = _better(best, outcome, goal_us / dense_us)
            if UNDER <= share <= OVER or (share < UNDER and self.all_strong(chosen)):
                break
            if again and bench.gpu is not None:
                break  # it teaches no more
            calibration = replace(
                calibration_next,
                overhead_us=0.0 if calibration_next.factor <= 0 else calibration_next.overhead_us,
            )
            if bench.gpu is not None and share > OVER:
                calibration = through(calibration, *runs[-1])
        assert best is not None
        return best

    def all_strong(self, chosen: Allocation) -> bool:
        """Whether a threshold, not the budget, says what goes: there is nothing to add then."""
        strong = {name: int((~mask).sum()) for name, mask in self.weak.items()}
        return bool(strong) and all(len(chosen.kept[n]) >= count for n, count in strong.items())


def through(calibration: Calibration, kernels_us: float, network_us: float) -> Calibration:
    """The calibration scaled to give a network its measured latency: it is not chosen again.

    Plans of like sizes are near it; where a model prices them, a fit to all runs may miss each.
    """
    scale = network_us / calibration.network_us(kernels_us)
    overhead, factor = calibration.overhead_us * scale, calibration.factor * scale
    return replace(calibration, overhead_us=overhead, factor=factor)


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
