"""Meeting a latency budget in int8 on this machine: price, solve, quantize, build, time, correct.

In: a float network and its budgets. Out: a `Plan`, and the facts of the search. Shares are of the
dense network in int8.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from hwprune.bench import in_turn, ratios
from hwprune.budget import LATENCY, Budget
from hwprune.calibrate import Calibration
from hwprune.capture import Program
from hwprune.cost import Cost
from hwprune.errors import HwpruneError
from hwprune.forms import Forms
from hwprune.gradual import Gradual, approach_latency
from hwprune.importance import Importance
from hwprune.int8_build import Int8Build, build_int8
from hwprune.int8_price import measure_int8
from hwprune.mcu_price.sites import sized
from hwprune.measure import Measured
from hwprune.plan import Plan
from hwprune.prepare import Prepared, carry_out, prepare
from hwprune.price import latency_costs, required
from hwprune.progress import Clock
from hwprune.provenance import provenance_of
from hwprune.quantize.config import QuantConfig
from hwprune.quantize.quantizer import quantize_program
from hwprune.reach import check_latency, way_out
from hwprune.solver import Solver, out_of_reach
from hwprune.table import LatencyTable
from hwprune.target import Target
from hwprune.threshold import Weak, discount, weak_units
from hwprune.turns import OVER, Turns

ROUNDS = 11


@dataclass(frozen=True)
class Asked:
    """What is asked for: budgets by resource, a latency among them; what calibrates and scores."""

    program: Program
    target: Target
    threads: int
    budgets: Mapping[str, Budget]
    given: Tensor
    images: Tensor | None
    forms: Forms = field(default_factory=Forms)
    importance: Importance = field(default_factory=Importance)
    threshold: float | None = None
    config: QuantConfig | None = None
    steps: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """The plan; `ratio` is its latency over the dense network's in int8, measured in turn."""

    plan: Plan
    ratio: float
    facts: dict[str, Any]


def meet_latency(asked: Asked, clock: Clock) -> Found:
    """The plan that keeps the most importance under the budgets.

    Raises BudgetError where they are out of reach, HwpruneError where nothing can be pruned.
    """
    asked.importance.check(asked.images is not None)
    return _Search(asked, clock).run()


class _Search:
    def __init__(self, asked: Asked, clock: Clock) -> None:
        self.asked, self.clock = asked, clock
        self.prepared = self._coupled()

    def run(self) -> Found:
        asked, clock, coupling = self.asked, self.clock, self.prepared.coupling
        with clock.stage("dense network in int8"):
            dense = self._build(asked.program)
        self.prepared = replace(self.prepared, sites=sized(dense.quantized, coupling).kernels)
        broad, kernels = self._priced()
        with clock.stage("score") as advance:
            scorer = asked.importance.read(asked.program).on(asked.images)
            scores, energies = scorer.scored(asked.program, coupling, advance)
            gradual = Gradual(scorer, asked.steps, asked.seed)
        weak: Weak = {}
        if asked.threshold is not None:
            weak = weak_units(energies.groups, coupling, asked.threshold)
        budgets = {r: b for r, b in asked.budgets.items() if r != LATENCY}
        fixed = {r: b.absolute(self.prepared.dense(r)) for r, b in budgets.items()}
        solver = Solver(self.prepared, discount(scores, weak), fixed, weak)
        return self._turns(dense, broad, kernels, solver, gradual)

    def _coupled(self) -> Prepared:
        """The network's groups and candidate widths. Raises HwpruneError where there are none."""
        asked = self.asked
        with self.clock.stage("couple"):
            prepared = prepare(asked.program, asked.target, asked.threads, **asdict(asked.forms))
        if not prepared.candidates:
            raise HwpruneError(
                "nothing can be pruned", where=asked.program.name, hint="see hwprune inspect"
            )
        return prepared

    def _build(self, program: Program) -> Int8Build:
        asked = self.asked
        quantized = quantize_program(program, asked.given, asked.config)
        return build_int8(quantized, asked.target, asked.threads, asked.given)

    def _priced(self) -> tuple[tuple[Cost, ...], Measured]:
        """The kernels' prices over the widths, once the budget is known to be within reach."""
        asked, prepared = self.asked, self.prepared
        with LatencyTable.open(provenance_of(asked.target)) as table:
            with self.clock.stage("check the budget") as advance:
                first = check_latency(
                    prepared, table, asked.budgets[LATENCY], fill=lambda some: measure_int8(
                        some, asked.target, asked.threads, table, advance
                    ),
                )  # fmt: skip
            with self.clock.stage("measure kernels") as advance:
                needed = required(prepared.sites, prepared.candidates)
                found = measure_int8(needed, asked.target, asked.threads, table, advance)
            costs = latency_costs(prepared.sites, prepared.candidates, table, asked.threads)
        return costs, first.then(found)

    def _near(self, near: Prepared, broad: tuple[Cost, ...]) -> tuple[Cost, ...]:
        """Prices over the candidate widths of a network on the way."""
        asked = self.asked
        if near is self.prepared:
            return broad
        with LatencyTable.open(provenance_of(asked.target)) as table:
            with self.clock.stage("measure kernels") as advance:
                needed = required(near.sites, near.candidates)
                measure_int8(needed, asked.target, asked.threads, table, advance)
            return latency_costs(near.sites, near.candidates, table, asked.threads)

    def _turns(
        self,
        dense: Int8Build,
        broad: tuple[Cost, ...],
        kernels: Measured,
        solver: Solver,
        gradual: Gradual,
    ) -> Found:
        dense_us = statistics.median(dense.artifact.latencies_us(40, warmup=5))
        goal_us = self.asked.budgets[LATENCY].absolute(dense_us)
        total = sum(cost.at(self.prepared.full) for cost in broad)
        calibration = Calibration(factor=dense_us / total)
        solver, costs, steps = approach_latency(
            gradual, solver, lambda near: self._near(near, broad), calibration, goal_us, dense_us,
            self.clock,
        )  # fmt: skip
        total = sum(cost.at(self.prepared.full) for cost in costs)
        turns = Turns(goal_us, calibration, [(total, dense_us)])
        best: Found | None = None
        again = True
        while again:
            calibration = turns.calibration
            with self.clock.stage(f"search, turn {turns.done + 1}"):
                chosen, narrowest = solver.aim(costs, calibration, goal_us)
                plan, program = carry_out(self.prepared, chosen.kept, chosen.predicted)
            with self.clock.stage(f"compile, turn {turns.done + 1}"):
                built = self._build(program)
                ratio = float(ratios(in_turn((dense.artifact, built.artifact), ROUNDS))[1])
            if narrowest and turns.hopeless(ratio * dense_us):
                raise out_of_reach(goal_us, ratio, dense_us, way_out(self.prepared))
            total = sum(cost.at(chosen.widths()) for cost in costs)
            again = turns.learn(
                total, ratio * dense_us, narrowest=narrowest, full=solver.complete(chosen)
            )
            facts = {
                "budget": str(self.asked.budgets[LATENCY]),
                "goal_us": goal_us,
                "dense_int8_us": dense_us,
                "predicted_us": calibration.network_us(total),
                "measured_us": ratio * dense_us,
                "turns": turns.done,
                "scored_steps": steps,
                "kernel_rows": {"measured": kernels.measured, "reused": kernels.reused},
                "source": "device",
            }
            best = _better(best, Found(plan, ratio, facts), goal_us / dense_us)
        assert best is not None
        return best


def _better(best: Found | None, new: Found, share: float) -> Found:
    """Within the budget the slower one, which keeps more; otherwise the nearer one."""
    if best is None:
        return new
    within = [found.ratio <= OVER * share for found in (best, new)]
    if all(within):
        return max(best, new, key=lambda found: found.ratio)
    if any(within):
        return best if within[0] else new
    return min(best, new, key=lambda found: found.ratio)
