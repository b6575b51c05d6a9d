"""A search in stages: each prunes what the one before left, on the way to the same budgets.

In: the search of every stage. Out: one `Outcome`, and the budgets that a stage has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from statistics import median
from typing import Any

import numpy as np

from hwprune.bench import interleaved, is_timed
from hwprune.budget import LATENCY, Budget
from hwprune.build import build
from hwprune.estimate import estimate_network
from hwprune.latency import Outcome
from hwprune.obtain import open_table
from hwprune.prepare import Prepared
from hwprune.stages import Stage, units_left


@dataclass(frozen=True)
class Searched:
    """A stage: the network as it began, the scores of its units, and what was found."""

    prepared: Prepared
    scores: Mapping[str, np.ndarray]
    outcome: Outcome

    @property
    def stage(self) -> Stage:
        """What was found, without the search."""
        outcome = self.outcome
        return Stage(self.prepared.program, self.prepared.coupling, outcome.plan, outcome.program)


def stage_budgets(
    budgets: Mapping[str, Budget], first: Prepared, done: Sequence[Searched], stages: int
) -> Mapping[str, Budget]:
    """The budgets of the next stage: every stage takes the same share of what is there before."""
    if stages == 1:
        return budgets
    part = (len(done) + 1) / stages
    found: dict[str, Budget] = {}
    for resource, budget in budgets.items():
        if budget.relative and (not done or resource == LATENCY):
            share = min(budget.value**part / _measured_share(done), 1.0)
            found[resource] = replace(budget, value=share)
        else:
            dense = dense_amount(resource, first, done)
            share = min(budget.absolute(dense) / dense, 1.0)
            found[resource] = Budget(resource, dense * share**part, relative=False)
    return found


def _measured_share(done: Sequence[Searched]) -> float:
    """The share of the original's latency that is left, each stage measured side by side."""
    outcomes = [searched.outcome for searched in done]
    measured = prod(o.timing.pair.ratio for o in outcomes if o.timing is not None)
    return measured * prod(o.estimate.ratio for o in outcomes if o.estimate is not None)


def dense_amount(resource: str, first: Prepared, done: Sequence[Searched] = ()) -> float:
    """What the original takes of a resource; its latency is measured if it has not been yet."""
    if resource != LATENCY:
        return first.dense(resource)
    timing = done[0].outcome.timing if done else None
    if timing is not None:
        return timing.pair.dense_us
    if not is_timed(first.target, None):
        with open_table(first.target) as table:
            return estimate_network(first.program, first.target, first.threads, table).median_us
    artifact = build(first.program, first.target, first.threads).artifact
    return float(median(artifact.latencies_us(40, warmup=5)))


def merge(done: Sequence[Searched]) -> Outcome:
    """The outcome of all stages, in the units of the first: what is left of each group.

    Heads of which some channels are left count as left. Latencies are measured anew, the original
    beside the last.
    """
    first, last = done[0].outcome, done[-1].outcome
    if len(done) == 1:
        return first
    plan = replace(first.plan, then=last.plan)
    kept = units_left([searched.stage for searched in done])
    allocation = replace(last.allocation, kept=kept)
    timing = last.timing
    if timing is not None and first.timing is not None:
        timing = replace(
            first.timing,
            pair=interleaved(first.timing.dense.artifact, timing.pruned.artifact),
            pruned_predicted_us=timing.pruned_predicted_us,
            kernels=first.timing.kernels.beside(timing.kernels),
            pruned=timing.pruned,
            attempts=first.timing.attempts + timing.attempts,
            profiles=(first.timing.profiles[0], timing.profiles[1]),
        )
    estimate = last.estimate
    if estimate is not None and first.estimate is not None:
        estimate = replace(first.estimate, pruned=estimate.pruned)
    return Outcome(allocation, plan, last.program, timing, estimate)


def describe_stages(done: Sequence[Searched]) -> list[dict[str, Any]]:
    """What every stage pruned, as JSON data."""
    return [
        {
            "attention": s.prepared.coupling.forms.attention,
            "groups": [
                {"name": g.name, "before": g.width, "after": len(s.outcome.plan.kept[g.name])}
                for g in s.prepared.coupling.groups
            ],
        }
        for s in done
    ]
