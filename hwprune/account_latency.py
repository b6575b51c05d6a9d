"""The latencies in the account of a run: measured or estimated, and of every kernel.

In: what the search measured (`Timing`, `Pair`) or estimated (`Estimate`). Out: entries of the
report, each with its source.
"""

from __future__ import annotations

from typing import Any

from hwprune.estimate import Estimate, Span
from hwprune.latency import Pair, Timing
from hwprune.predict.fill import MODEL
from hwprune.row import describe

FALLBACK = "fallback"


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


def add_prediction(report: dict[str, Any], timing: Timing) -> None:
    """What the prices had said of both networks, and the memory of their values."""
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


def measured(timing: Timing) -> dict[str, Any]:
    """Where the prices came from, and the time of every kernel in its network."""
    sources = timing.sources
    return {
        "sources": {
            "measured": sources.measured,
            "interpolated": sources.interpolated,
            "modelled": sources.modelled,
            "newly_measured": timing.kernels.measured,
            **({"newly_modelled": modelled} if (modelled := timing.kernels.predicted) else {}),
            "reused": timing.kernels.reused,
            "failed": [describe(w) for w in timing.kernels.failed],
        },
        "turns": timing.attempts,
        **({"board": timing.board, "warnings": [*timing.warnings]} if timing.board else {}),
        "kernels": _kernels(timing),
        "fallbacks": _fallbacks(timing),
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
