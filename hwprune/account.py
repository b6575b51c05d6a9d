"""The account of a run: the dict behind report.json, from what each stage found out.

In: `Facts`. Out: plain data, documented in docs/report.md. Every latency says where it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwprune.account_latency import add_estimate, add_latency, add_prediction, measured
from hwprune.allocate import allocate
from hwprune.budget import LATENCY, MACS, PARAMS, Budget
from hwprune.capture import Program
from hwprune.compare import few_inputs
from hwprune.cost import Cost
from hwprune.errors import BudgetError
from hwprune.estimate import Estimate
from hwprune.given import HELD_OUT
from hwprune.latency import Outcome, Timing
from hwprune.prepare import Prepared
from hwprune.recover import fidelity
from hwprune.solver import network_costs
from hwprune.target import BFLOAT16, FLOAT16, Target
from hwprune.verify import Certificate

CURVE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


@dataclass(frozen=True)
class Facts:
    """Everything a report is made of."""

    prepared: Prepared
    scores: Mapping[str, np.ndarray]
    budgets: Mapping[str, Budget]
    outcome: Outcome
    certificate: Certificate
    recovered: Program
    repair: Sequence[Mapping[str, Any]]
    images: Tensor | None
    seconds: Mapping[str, float]
    plan_source: str = ""  # where the plan comes from, if it was not searched for


def account(facts: Facts) -> dict[str, Any]:
    """The report of a pruning run, JSON data only."""
    prepared, outcome = facts.prepared, facts.outcome
    chosen = outcome.allocation
    report: dict[str, Any] = {
        "model": prepared.program.name,
        "target": prepared.target.name,
        "threads": prepared.threads,
        **_run(prepared),
        "budget": {r: str(b) for r, b in facts.budgets.items()},
        "dense": _sizes(prepared.program, prepared.dense(MACS), prepared.target),
        "pruned": _sizes(outcome.program, chosen.predicted[MACS], prepared.target),
        **_origin(facts),
        "certificate": {
            "max_rel_error": facts.certificate.max_rel_error,
            "gradient_rel_error": facts.certificate.gradient_rel_error,
            "reference": facts.certificate.reference,
            "passed": facts.certificate.passed,
        },
        "seconds": {k: round(v, 2) for k, v in facts.seconds.items()},
        "fidelity": _fidelity(facts),
        "recovery": [dict(row) for row in facts.repair],
        "groups": [
            {"name": g.name, "before": g.width, "after": len(chosen.kept[g.name])}
            for g in prepared.coupling.groups
        ],
        "branches": [
            {"name": b.name, "kept": bool(chosen.kept[b.name])} for b in prepared.coupling.branches
        ],
        "frozen": [{"name": f.name, "reason": f.reason} for f in prepared.coupling.frozen],
    }
    if outcome.timing is not None:
        report |= measured(outcome.timing) | {"curve": _curve(facts, outcome.timing)}
        add_prediction(report, outcome.timing)
        add_latency(report, outcome.timing.pair)
    if outcome.estimate is not None:
        add_estimate(report, outcome.estimate)
        report["turns"] = outcome.estimate.attempts
        report["curve"] = _curve(facts, outcome.estimate)
    _add_energy(report, prepared)
    return report


def _run(prepared: Prepared) -> dict[str, Any]:
    """What a run on a GPU is of: how many inputs, in which type."""
    if prepared.target.kind != "cuda":
        return {}
    batch = {x.shape[0] for x in prepared.program.inputs if x.ndim}
    return {"dtype": prepared.target.dtype, "batch": min(batch, default=1)}


def _origin(facts: Facts) -> dict[str, Any]:
    """How the plan was found: by a search, or given."""
    if facts.plan_source:
        return {"plan": facts.plan_source}
    chosen = facts.outcome.allocation
    return {
        "search": {
            "objective": chosen.objective,
            "bound": chosen.bound,
            "gap": chosen.gap,
            "seconds": chosen.seconds,
        }
    }


def _sizes(program: Program, macs: float, target: Target) -> dict[str, Any]:
    tensors = list(program.module.parameters())
    halves = 2 if target.storage in (FLOAT16, BFLOAT16) else 1
    return {
        "params": sum(t.numel() for t in tensors),
        "macs": int(macs),
        "weight_bytes": sum(t.numel() * t.element_size() // halves for t in tensors),
    }


def _curve(facts: Facts, timing: Timing | Estimate) -> list[dict[str, float]]:
    """Importance kept against predicted latency at other budgets."""
    prepared = facts.prepared
    costs: dict[str, Sequence[Cost]] = {
        LATENCY: network_costs(timing.broad, timing.calibration),
        MACS: prepared.macs,
        PARAMS: prepared.params,
    }
    dense_us = sum(cost.at(prepared.full) for cost in costs[LATENCY])
    whole = sum(float(s.sum()) for s in facts.scores.values())
    points = [{"budget_us": dense_us, "predicted_us": dense_us, "importance_kept": 1.0}]
    for share in CURVE:
        try:
            found = allocate(
                facts.scores,
                prepared.candidates,
                costs,
                {LATENCY: share * dense_us},
                gates=prepared.gates,
                time_limit_s=2,
                gap=0.01,
            )
        except BudgetError:
            break
        points.append(
            {
                "budget_us": share * dense_us,
                "predicted_us": found.predicted[LATENCY],
                "importance_kept": found.objective / whole,
            }
        )
    return points


def _fidelity(facts: Facts) -> dict[str, Any]:
    """Agreement with the dense network on images that recovery has not seen."""
    if facts.images is not None and len(facts.images) >= HELD_OUT:
        images, kind = facts.images[::HELD_OUT], "held-out calibration images"
    elif facts.images is not None:
        images, kind = facts.images, "calibration images"
    elif len(facts.prepared.program.inputs) == 1:
        images, kind = few_inputs(facts.prepared.program)[0], "example inputs"
    else:
        return {"top1_agreement": None, "cosine": None, "images": 0, "on": "nothing"}
    dense = _runner(facts.prepared.program)
    after = fidelity(dense, _runner(facts.recovered), images)
    before = fidelity(dense, _runner(facts.outcome.program), images)
    return {**after, "before_recovery": before, "images": len(images), "on": kind}


def _runner(program: Program) -> Callable[[Tensor], Any]:
    def run(batch: Tensor) -> Any:
        if program.dynamic_batch or batch.shape == program.inputs[0].shape:
            return program.module(batch)
        return torch.cat([program.module(x[None]) for x in batch])

    return run


def _add_energy(report: dict[str, Any], prepared: Prepared) -> None:
    energy = prepared.target.energy
    if energy is None:
        return
    for side in ("dense", "pruned"):
        sizes = report[side]
        picojoule = sizes["macs"] * energy.pj_per_mac + sizes["weight_bytes"] * energy.pj_per_byte
        sizes["energy_uj"] = picojoule * 1e-6
    report["energy_source"] = f"model: {energy.source}"
