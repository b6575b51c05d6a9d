"""Two plans of a network that take the same time on a GPU: one that knows it, one that counts MACs.

In: a network, a batch, a target and a dtype. Out: the dense and the smaller programs, and a row
with what each keeps. Latencies are the target's: of its model, or measured where `hwprune profile`
has put rows in this machine's table; where the GPU is, the latency-aware plan is a timed one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hwprune.budget import MACS
from hwprune.errors import BudgetError

if TYPE_CHECKING:  # they load torch, which a process that times an artifact does without
    from benchmarks.aware_vs_blind import Subject, Widths
    from hwprune.cost import Cost

BUDGET = "50%"  # of the dense network's latency
AWARE, COUNTED = "hwprune_latency", "hwprune_macs"  # the plan under it; of as long, by MACs
CURVE = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)  # shares of the multiply-accumulates
Row = dict[str, Any]


def make_plans(
    model: str, batch: int, target: str, dtype: str, budget: str = BUDGET
) -> tuple[dict[str, Any], Row]:
    """(programs by system, what is known of them); "hwprune_dense" is the network as it is."""
    import hwprune
    from benchmarks.aware_vs_blind import Subject, blind, price
    from examples.models import build, example_input
    from hwprune.prepare import carry_out, prepare
    from hwprune.problem import Problem
    from hwprune.score import score

    inputs = (example_input(model, batch),)
    options: dict[str, Any] = {"target": target, "dtype": dtype, "name": model}
    aware = hwprune.prune(build(model).eval(), inputs, latency=budget, **options)
    prepared = prepare(aware.dense, aware.target, 1)
    subject = Subject(model, prepared, score(aware.dense, prepared.coupling, "l2"))
    priced = aware.outcome.estimate or aware.outcome.timing  # timed where the GPU is
    assert priced is not None
    costs, widths = priced.costs, aware.outcome.allocation.widths()
    counted = blind(subject, MACS, prepared.macs, costs, price(costs, widths))
    problem = Problem(subject.scores, prepared.candidates, {}, {}, prepared.gates)
    plan, _ = carry_out(prepared, problem.allocation(counted, 0.0, 0.0).kept)
    programs = {
        "hwprune_dense": aware.dense,
        AWARE: aware.program,
        COUNTED: hwprune.prune(aware.dense, plan=plan, **options).program,
    }
    row = {
        "batch": batch,
        "budget": budget,
        "latencies": aware.report.get("latency_model") or f"measured on {aware.report['board']}",
        "kernel_rows": {k: aware.report["sources"][k] for k in ("measured", "modelled")},
        "dense_us": price(costs, prepared.full),
        AWARE: facts(subject, costs, widths),
        COUNTED: facts(subject, costs, counted),
        "macs_curve": curve(subject, costs),
    }
    return programs, row | {"importance_gain": gain(row)}


def facts(subject: Subject, costs: Sequence[Cost], widths: Widths) -> Row:
    """What a plan keeps and takes, as shares of the dense network's but for `predicted_us`."""
    from benchmarks.aware_vs_blind import price

    full = subject.prepared.full
    return {
        "importance_kept": subject.kept(widths),
        "predicted_us": price(costs, widths),
        "latency_share": price(costs, widths) / price(costs, full),
        "macs_share": price(subject.prepared.macs, widths) / subject.prepared.dense(MACS),
    }


def curve(subject: Subject, costs: Sequence[Cost]) -> list[Row]:
    """MACs-aware plans of other budgets, with rising MACs."""
    found = []
    for share in CURVE:
        try:
            found.append(facts(subject, costs, subject.plan(MACS, subject.prepared.macs, share)))
        except BudgetError:  # less than the narrowest network
            continue
    return found


def gain(row: Mapping[str, Any], measured_us: Mapping[str, float] | None = None) -> float:
    """How much more importance the latency-aware plan keeps than a MACs-aware one of its latency.

    That is read off the curve of such plans at the former's latency. `measured_us`: of both plans,
    by system; the curve's latencies are then taken to be wrong by the same factor.
    """
    aware, counted = row[AWARE], row[COUNTED]
    us = measured_us or {system: row[system]["predicted_us"] for system in (AWARE, COUNTED)}
    points = [*row["macs_curve"], counted]
    ends = sorted((point["predicted_us"], point["importance_kept"]) for point in points)
    times, shares = zip(*ends, strict=True)
    at_us = us[AWARE] * counted["predicted_us"] / us[COUNTED]
    return float(aware["importance_kept"] / np.interp(at_us, times, shares) - 1.0)
