"""Means and deviations over seeds of the accuracy benchmark, and what they say.

In: rows. Out: a `Summary` by network, speed-up and system; verdicts. Nothing is trained or timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ACCURACIES = ("acc_dense", "acc_pruned", "acc_recovered", "acc_1", "acc_3", "acc_10")
AMOUNTS = ("speedup_measured", "latency_us", "macs", "params")
OURS, OWN_TOO, PEER = "hwprune", "hwprune-widths", "torch-pruning"
Row = Mapping[str, Any]
Key = tuple[str, float, str]  # network, speed-up, system


@dataclass(frozen=True)
class Value:
    """The mean over seeds, and their standard deviation (0 of a single one)."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Summary:
    """What the seeds of one network, speed-up and system say; None where they lack a column."""

    seeds: int
    values: Mapping[str, Value | None]
    reasons: tuple[str, ...] = ()

    def mean(self, column: str) -> float | None:
        """Of a column."""
        value = self.values.get(column)
        return None if value is None else value.mean


def summarise(rows: Sequence[Row]) -> dict[Key, Summary]:
    """By network, speed-up and system, in the order of the rows."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault((row["model"], row["speedup"], row["system"]), []).append(row)
    return {key: _summary(same) for key, same in found.items()}


def _summary(rows: Sequence[Row]) -> Summary:
    good = [row for row in rows if "reason" not in row]
    reasons = tuple(dict.fromkeys(str(row["reason"]) for row in rows if "reason" in row))
    values = {name: _value([row.get(name) for row in good]) for name in (*ACCURACIES, *AMOUNTS)}
    return Summary(len(good), values, reasons)


def _value(found: Sequence[float | None]) -> Value | None:
    """None where any seed lacks it: a mean over some of them would compare unlike things."""
    given = [x for x in found if x is not None]
    if not given or len(given) < len(found):
        return None
    return Value(statistics.fmean(given), statistics.stdev(given) if len(given) > 1 else 0.0)


def verdicts(summaries: Mapping[Key, Summary]) -> list[dict[str, Any]]:
    """By network and speed-up: how far hwprune is from dense and ahead of every other system.

    Points of accuracy; `lost` after ten epochs, `ahead` of the best of the others then,
    `ahead_without_labels` of Torch-Pruning's best after pruning and after recovery. None where a
    row is missing.
    """
    found = []
    for model, speedup in dict.fromkeys(key[:2] for key in summaries):
        same = {key[2]: s for key, s in summaries.items() if key[:2] == (model, speedup)}
        if OURS not in same:
            continue
        own = same.pop(OURS)
        same.pop(OWN_TOO, None)
        peers = {name: s for name, s in same.items() if name.startswith(PEER)}
        found.append(
            {
                "model": model,
                "speedup": speedup,
                "lost": _minus(own.mean("acc_dense"), own.mean("acc_10")),
                "ahead": _ahead(own, same, "acc_10"),
                "deviation": getattr(own.values.get("acc_10"), "deviation", None),
                "ahead_of_peers": _ahead(own, peers, "acc_10"),
                "ahead_without_labels": {
                    name: _ahead(own, peers, name) for name in ("acc_pruned", "acc_recovered")
                },
            }
        )
    return found


def _ahead(own: Summary, others: Mapping[str, Summary], column: str) -> float | None:
    means = [mean for s in others.values() if (mean := s.mean(column)) is not None]
    return _minus(own.mean(column), max(means, default=None))


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else round(a - b, 4)
