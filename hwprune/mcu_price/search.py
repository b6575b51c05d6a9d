"""Meeting budgets on a microcontroller: price, solve, quantize, link, run, and correct.

In: an `McuPrepared` network, scores and budgets. Out: `Found`. Latency comes from the table of the
emulated board, SRAM is one constraint for every step of the schedule, flash is linear in the
weights. What the linked program needs decides; a miss corrects the prices and the plan is solved
again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from hwprune.allocate import allocate
from hwprune.budget import FLASH, LATENCY, MACS, PARAMS, SRAM, Budget
from hwprune.calibrate import Calibration
from hwprune.capture import Program
from hwprune.cost import Cost, merged
from hwprune.errors import BudgetError
from hwprune.gradual import Gradual, ease, walk
from hwprune.latency import Outcome
from hwprune.mcu_price.bounds import check_memory, check_time, missed
from hwprune.mcu_price.measure import THREADS, measure_kernels
from hwprune.mcu_price.memory import Memory, memory_of
from hwprune.mcu_price.network import Network, build_network
from hwprune.mcu_price.prepared import McuPrepared, fill_table, open_table
from hwprune.measure import Measured
from hwprune.prepare import Prepared, carry_out
from hwprune.price import extremes, latency_costs
from hwprune.problem import Allocation, Problem
from hwprune.progress import Advance, Clock
from hwprune.quantize.config import QuantConfig
from hwprune.score import Scores
from hwprune.solver import network_costs
from hwprune.table import LatencyTable
from hwprune.threshold import Weak, discount, without
from hwprune.trial import Kept

TURNS = 5
NEAR = 0.95  # of some budget that is used at least, unless nothing more is won by another turn
_NAMES = {LATENCY: "latency", SRAM: "SRAM", FLASH: "flash"}


@dataclass(frozen=True)
class Found:
    """What meets the budgets: the plan, the recovered network, and the dense one beside it.

    `dense` is None where not even the emulated board has memory for it. `limits` are the budgets in
    microseconds and bytes.
    """

    outcome: Outcome
    dense: Network | None
    pruned: Network
    limits: Mapping[str, float]
    turns: int
    kernels: Measured | None = None


@dataclass(frozen=True)
class Asked:
    """What is asked for, and how a plan is finished.

    `finish` certifies an outcome and gives the recovered program; `given` are inputs to calibrate
    with; `gradual` scores the units again on the way.
    """

    scores: Mapping[str, np.ndarray]
    budgets: Mapping[str, Budget]
    given: Tensor
    finish: Callable[[Outcome], Program]
    weak: Weak = field(default_factory=dict)
    config: QuantConfig | None = None
    gradual: Gradual | None = None


def meet(ready: McuPrepared, asked: Asked, clock: Clock) -> Found:
    """The plan that keeps the most importance under all budgets and the device's memory.

    Raises BudgetError, before long work where that is possible, saying by how much a budget cannot
    be met, what needs most and the smallest reachable value.
    """
    return _Search(ready, asked, clock).run()


class _Search:
    def __init__(self, ready: McuPrepared, asked: Asked, clock: Clock) -> None:
        self.ready, self.prepared, self.asked, self.clock = ready, ready.prepared, asked, clock
        self.target = ready.prepared.target
        self.problem = Problem({}, self.prepared.candidates, {}, {}, self.prepared.gates)
        self.scores = asked.scores
        self.limits: dict[str, float] = {}
        self.fixed = {SRAM: 0.0, FLASH: 0.0}  # bytes that are no value, scratch or constant
        self.factor = 1.0  # of a network's latency to the sum of its kernels'
        self.memory = Memory((), ())
        self.costs: tuple[Cost, ...] = ()
        self.kernels: Measured | None = None

    def run(self) -> Found:
        with self.clock.stage("dense network"):
            dense = self._dense()
        self._limit_counts()
        self._limit_memory(dense)
        if LATENCY in self.asked.budgets:
            self._limit_latency(dense)
        self._approach()
        return self._turns(dense)

    def _approach(self) -> None:
        """Score the units again while the network gets narrower, on the way to the limits."""
        costs, limits = self._priced()
        dense = self._whole(costs, limits)
        share = min((v / dense[r] for r, v in limits.items()), default=1.0)

        def kept(_: Prepared, scores: Scores, part: float) -> Kept:
            return self._allocated(scores, part).kept

        gradual, start = self.asked.gradual, self.prepared
        _, self.scores, _ = walk(gradual, start, self.scores, share, kept, self.clock)

    def _dense(self) -> Network | None:
        """The dense network, if the emulated board has memory for it."""
        try:
            return self._network(self.prepared.program)
        except BudgetError:
            return None

    def _network(self, program: Program) -> Network:
        return build_network(program, self.target, self.asked.given, self.asked.config)

    def _limit_counts(self) -> None:
        for resource in (MACS, PARAMS):
            if resource in self.asked.budgets:
                dense = self.prepared.dense(resource)
                self.limits[resource] = self.asked.budgets[resource].absolute(dense)

    def _limit_memory(self, dense: Network | None) -> None:
        """Budgets of SRAM and flash, and the device's own where the dense network exceeds it."""
        sizes = {SRAM: self.target.sram_bytes, FLASH: self.target.flash_bytes}
        for resource, room in sizes.items():
            budget = self.asked.budgets.get(resource)
            needs = None if dense is None else _needs(dense)[resource]
            if budget is not None and budget.relative and needs is None:
                raise BudgetError(
                    f"{budget} of what does not run on the emulated board is not known",
                    where=_NAMES[resource].lower(),
                    hint="give it in KiB",
                )
            bounds = [] if budget is None else [budget.absolute(needs or 0.0)]
            if room is not None and (bounds or needs is None or needs > room):
                bounds.append(float(room))
            if bounds:
                self.limits[resource] = min(bounds)
        if not {SRAM, FLASH} & self.limits.keys():
            return
        with self.clock.stage("memory over widths"):
            self.memory = memory_of(self.ready)
        if dense is not None:
            self._learn(dense, self.problem.full)
        check_memory(self.memory, self.problem.smallest, self.limits, self.fixed)

    def _limit_latency(self, dense: Network | None) -> None:
        """The budget in microseconds, once it is known to be within reach; kernels' prices."""
        sites, prepared = self.ready.sized.kernels, self.prepared
        with open_table(self.target) as table:
            with self.clock.stage("check the budget") as advance:
                first = self._measure_ends(table, advance)
                full, least = self._ends_us(table)
                dense_us = sum(full.values())
                measured_us = dense_us if dense is None else dense.latency_us
                goal_us = self.asked.budgets[LATENCY].absolute(measured_us)
                check_time(goal_us, least, dense_us)
            with self.clock.stage("measure kernels") as advance:
                self.kernels = first.then(fill_table(self.ready, table, advance))
            self.costs = latency_costs(sites, prepared.candidates, table, THREADS)
        self.limits[LATENCY] = goal_us
        if dense is not None:
            self._learn(dense, self.problem.full)

    def _measure_ends(self, table: LatencyTable, advance: Advance) -> Measured:
        """The kernels of the narrowest and of the full network."""
        ends = extremes(self.ready.sized.kernels, self.prepared.candidates)
        both = [workload for narrow, full, _ in ends for workload in (narrow, full)]
        return measure_kernels(both, self.target, table, advance)

    def _ends_us(self, table: LatencyTable) -> tuple[dict[str, float], dict[str, float]]:
        """Microseconds by kernel of the full network, and of the narrowest without branches."""
        sites = self.ready.sized.kernels
        ends = extremes(sites, self.prepared.candidates)
        full_us: dict[str, float] = {}
        least_us: dict[str, float] = {}
        for site, (narrow, full, count) in zip(merged(sites), ends, strict=True):
            name = site.call.output
            full_us[name] = count * table.latency_us(full, THREADS)
            if not site.branch:
                least_us[name] = count * table.latency_us(narrow, THREADS)
        return full_us, least_us

    def _learn(self, network: Network, widths: Mapping[str, int]) -> None:
        """What the prices at these widths lack of what the network takes."""
        self.fixed = {
            SRAM: network.sram_bytes - self.memory.arena_bytes(widths),
            FLASH: network.flash_bytes - self.memory.constant_bytes(widths),
        }
        if self.costs:
            self.factor = network.latency_us / sum(cost.at(widths) for cost in self.costs)

    def _turns(self, dense: Network | None) -> Found:
        best: Found | None = None
        worst: dict[str, float] = {}
        for turn in range(1, TURNS + 1):
            try:
                with self.clock.stage(f"search, turn {turn}"):
                    outcome = self._solve()
            except BudgetError:
                if best is None:
                    raise
                break
            with self.clock.stage(f"build, turn {turn}"):
                network = self._network(outcome.program)
            widths = outcome.allocation.widths()
            if not self._over(network, outcome):
                if best is not None and not _keeps_more(outcome, best.outcome):
                    break
                network = self._network(self.asked.finish(outcome))
            over = self._over(network, outcome)
            self._learn(network, widths)
            if over:
                worst = over
                continue
            best = Found(outcome, dense, network, self.limits, turn, self.kernels)
            if self._used(network, outcome) >= NEAR or widths == self.problem.full:
                break
        if best is None:
            resource = max(worst, key=lambda r: worst[r] / self.limits[r])
            raise missed(resource, self.limits[resource], worst[resource])
        return best

    def _takes(self, network: Network, outcome: Outcome) -> dict[str, float]:
        """What a network takes of every limited resource."""
        found = {**outcome.allocation.predicted, **_needs(network), LATENCY: network.latency_us}
        return {resource: found[resource] for resource in self.limits}

    def _over(self, network: Network, outcome: Outcome) -> dict[str, float]:
        """The limits that a network exceeds, with what it takes."""
        takes = self._takes(network, outcome)
        return {r: v for r, v in takes.items() if v > self.limits[r] * (1 + 1e-9)}

    def _used(self, network: Network, outcome: Outcome) -> float:
        """The largest share of a limit that is used."""
        takes = self._takes(network, outcome)
        return max((v / self.limits[r] for r, v in takes.items()), default=1.0)

    def _solve(self) -> Outcome:
        """The best plan within the limits."""
        chosen = self._allocated(self.scores)
        chosen = replace(chosen, predicted=self._predicted(chosen))
        return Outcome(chosen, *carry_out(self.prepared, chosen.kept, chosen.predicted), None)

    def _allocated(self, scores: Scores, part: float = 1.0) -> Allocation:
        """What keeps most within the limits, or within what is left after a part of the way."""
        costs, limits = self._priced()
        if part < 1:
            limits = ease(limits, self._whole(costs, limits), part)
        prepared, weak = self.prepared, self.asked.weak
        scores = discount(scores, weak)
        problem = Problem(scores, prepared.candidates, costs, limits, prepared.gates)
        chosen = allocate(scores, prepared.candidates, costs, limits, gates=prepared.gates)
        return without(chosen, weak, problem)

    def _whole(
        self, costs: Mapping[str, Sequence[Cost]], limits: Mapping[str, float]
    ) -> dict[str, float]:
        """What the dense network takes of what is limited."""
        return {r: sum(cost.at(self.problem.full) for cost in costs[r]) for r in limits}

    def _priced(self) -> tuple[dict[str, Sequence[Cost]], dict[str, float]]:
        """Costs and limits by resource; every step of the schedule is one of SRAM."""
        costs: dict[str, Sequence[Cost]] = {
            MACS: self.prepared.macs,
            PARAMS: self.prepared.params,
        }
        limits = {r: v for r, v in self.limits.items() if r != SRAM}
        if LATENCY in limits:
            costs[LATENCY] = network_costs(self.costs, Calibration(factor=self.factor))
        if FLASH in limits:
            costs[FLASH] = (*self.memory.constants, _constant("code", self.fixed[FLASH]))
        if SRAM in self.limits:
            for i, step in enumerate(self.memory.steps):
                name = f"{SRAM} {i} {step.name}"
                costs[name] = (*step.costs, _constant("stack", self.fixed[SRAM]))
                limits[name] = self.limits[SRAM]
        return costs, limits

    def _predicted(self, chosen: Allocation) -> dict[str, float]:
        widths = chosen.widths()
        found = {r: v for r, v in chosen.predicted.items() if not r.startswith(SRAM)}
        if SRAM in self.limits:
            found[SRAM] = self.memory.arena_bytes(widths) + self.fixed[SRAM]
        return found


def _keeps_more(outcome: Outcome, best: Outcome) -> bool:
    return outcome.allocation.objective > best.allocation.objective * (1 + 1e-9)


def _needs(network: Network) -> dict[str, float]:
    return {SRAM: float(network.sram_bytes), FLASH: float(network.flash_bytes)}


def _constant(name: str, value: float) -> Cost:
    return Cost(name, (), (), np.array(value))
