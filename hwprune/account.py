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

from hwprune.allocate import allocate
from hwprune.budget import LATENCY, MACS, PARAMS, Budget
from hwprune.capture import Program
from hwprune.compare import few_inputs
from hwprune.cost import Cost
from hwprune.errors import BudgetError
from hwprune.estimate import Estimate, Span
from hwprune.latency import Outcome, Pair, Timing, network_costs
from hwprune.predict.fill import MODEL
from hwprune.prepare import Prepared
from hwprune.recover import fidelity
from hwprune.row import describe
from hwprune.target import BFLOAT16, FLOAT16, Target
from hwprune.verify import Certificate

HELD_OUT = 4  # every fourth calibration image judges the result and is not used to recover
CURVE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
FALLBACK = "fallback"


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
        report |= _latency(facts, outcome.timing)
        _add_prediction(report, outcome.timing)
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


def add_latency(report: dict[str, Any], pair: Pair) -> None:
    """Write what was measured, dense and pruned in turn; the prediction's error if there is one.

    It takes the place of an estimate.
    """
    for side in ("dense", "pruned"):
        for end in ("low", "high"):
            report[side].pop(f"latency_{end}_us", None)
    report.pop("latency_model", None)
    report["dense"] |= {"latency_us": pair.dense_us, "latency_source": "device"}
    report["pruned"] |= {"latency_us": pair.pruned_us, "latency_source": "device"}
    report["ratio"] = pair.ratio
    if "predicted_us" in report["pruned"]:
        share = report["pruned"]["predicted_us"] / report["dense"]["predicted_us"]
        report["prediction_error"] = share / pair.ratio - 1


def _add_prediction(report: dict[str, Any], timing: Timing) -> None:
    for name, predicted_us, built in (
        ("dense", timing.dense_predicted_us, timing.dense),
        ("pruned", timing.pruned_predicted_us, timing.pruned),
    ):
        report[name] |= {
            "predicted_us": predicted_us,
            "activation_bytes": built.lowered.arena.size_bytes,
        }


def add_estimate(report: dict[str, Any], found: Estimate) -> None:
    """Latencies of a device that is not here, with their interval; never as if measured."""
    report.pop("prediction_error", None)
    for side, span in (("dense", found.dense), ("pruned", found.pruned)):
        report[side].pop("predicted_us", None)
        report[side] |= {
            "latency_us": span.median_us,
            "latency_low_us": span.low_us,
            "latency_high_us": span.high_us,
            "latency_source": MODEL,
        }
    report["ratio"] = found.ratio
    report["latency_model"] = found.origin
    report["kernels"] = _estimated_kernels(found.dense, found.pruned)
    if found.kernels is not None:
        sources = found.sources
        report["sources"] = {
            "measured": sources.measured,
            "interpolated": sources.interpolated,
            "modelled": sources.modelled,
            "newly_measured": found.kernels.measured,
            "newly_modelled": found.kernels.predicted,
            "reused": found.kernels.reused,
            "failed": [describe(w) for w in found.kernels.failed],
        }


def _estimated_kernels(dense: Span, pruned: Span) -> list[dict[str, Any]]:
    after = {kernel.name: kernel for kernel in pruned.kernels}
    return [
        {
            "name": kernel.name,
            "parameter": kernel.parameter,
            "rule": "",
            "reason": "",
            "dense_us": kernel.us,
            "pruned_us": after[kernel.name].us if kernel.name in after else 0.0,
            "source": kernel.source,
        }
        for kernel in dense.kernels
    ]


def _latency(facts: Facts, timing: Timing) -> dict[str, Any]:
    sources = timing.sources
    return {
        "sources": {
            "measured": sources.measured,
            "interpolated": sources.interpolated,
            "modelled": sources.modelled,
            "newly_measured": timing.kernels.measured,
            "reused": timing.kernels.reused,
            "failed": [describe(w) for w in timing.kernels.failed],
        },
        "turns": timing.attempts,
        "kernels": _kernels(timing),
        "fallbacks": _fallbacks(timing),
        "curve": _curve(facts, timing),
    }


def _kernels(timing: Timing) -> list[dict[str, Any]]:
    """In-network time of every kernel, dense and pruned, by call name."""
    dense, pruned = timing.profiles
    lowered = timing.dense.lowered
    rules = lowered.rules
    weights = {c.name: c.params[0] for c in lowered.calls if c.params}
    return [
        {
            "name": name,
            "parameter": weights.get(name, ""),
            "rule": rules[name][0],
            "reason": rules[name][1],
            "dense_us": us,
            "pruned_us": pruned.get(name, 0.0),
            "source": "device",
        }
        for name, us in dense.items()
    ]


def _fallbacks(timing: Timing) -> list[dict[str, Any]]:
    """Kernels that no schedule rule took, with their share of the pruned network's time."""
    times = timing.profiles[1]
    total = sum(times.values()) or 1.0
    return [
        {"kernel": name, "share": times.get(name, 0.0) / total}
        for name, (rule, _) in timing.pruned.lowered.rules.items()
        if FALLBACK in rule
    ]


def _curve(facts: Facts, timing: Timing | Estimate) -> list[dict[str, float]]:
    """Importance kept against predicted latency at other budgets."""
    prepared = facts.prepared
    costs: dict[str, Sequence[Cost]] = {
        LATENCY: network_costs(timing.costs, timing.calibration),
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
