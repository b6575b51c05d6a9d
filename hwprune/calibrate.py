"""Calibration: from the sum of a network's kernels, timed alone, to the network's latency.

In: isolated kernel times, times inside the network, and end-to-end runs. Out: a `Calibration` that
scales every kernel to its place in the network and adds what lies between kernels; it is kept in
the latency table under the network's fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwprune.cost import Cost
from hwprune.errors import TableError
from hwprune.table import LatencyTable

RATIO_BOUNDS = (0.5, 3.0)  # a kernel's ratio outside these is a disturbed measurement


@dataclass(frozen=True)
class Calibration:
    """`network = overhead_us + factor * sum(correction * kernel)`, from `runs` end-to-end runs.

    `corrections` give, by call name, the time in the network over the time alone.
    """

    overhead_us: float = 0.0
    factor: float = 1.0
    corrections: Mapping[str, float] = field(default_factory=dict)
    runs: int = 0

    def network_us(self, kernels_us: float) -> float:
        """The latency of a network whose (corrected) kernels take `kernels_us` together."""
        return self.overhead_us + self.factor * kernels_us

    def kernels_us(self, network_us: float) -> float:
        """The sum of kernels that makes a network take `network_us`: a budget for the search."""
        return (network_us - self.overhead_us) / self.factor

    def to_json(self) -> dict[str, Any]:
        """As the latency table keeps it."""
        return {
            "overhead_us": self.overhead_us,
            "factor": self.factor,
            "corrections": dict(self.corrections),
            "runs": self.runs,
        }

    @staticmethod
    def from_json(raw: Mapping[str, Any], where: str) -> Calibration:
        """The inverse of `to_json`. Raises TableError naming `where` if it is malformed."""
        try:
            found = Calibration(
                float(raw["overhead_us"]),
                float(raw["factor"]),
                {str(name): float(ratio) for name, ratio in raw["corrections"].items()},
                int(raw["runs"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TableError("holds a malformed calibration", where=where) from error
        numbers = (found.overhead_us, found.factor, *found.corrections.values())
        if not all(math.isfinite(n) for n in numbers) or min(found.factor, *numbers[2:], 1) <= 0:
            raise TableError("holds a calibration out of range", where=where)
        return found


def context_corrections(
    costs: Sequence[Cost], widths: Mapping[str, int], in_context_us: Mapping[str, float]
) -> dict[str, float]:
    """Per call: time in the network over time alone, from a profiled run at `widths`.

    `costs` are uncorrected latency costs. Calls without a profile keep ratio 1.
    """
    ratios = {}
    for cost in costs:
        alone = cost.at(widths) / cost.count
        for name in cost.calls:
            if name in in_context_us and alone > 0:
                ratios[name] = float(np.clip(in_context_us[name] / alone, *RATIO_BOUNDS))
    return ratios


def fit(
    runs: Sequence[tuple[float, float]], corrections: Mapping[str, float] | None = None
) -> Calibration:
    """Fit overhead and factor to (sum of corrected kernels, measured network) pairs in us.

    One run, or runs that hardly differ, fix the factor or the overhead alone: what exceeds the
    kernels is overhead where the kernels were timed in the network, else a factor. Raises
    TableError where there is no run or a time is not positive.
    """
    points = np.array(runs, dtype=float).reshape(-1, 2)
    if not len(points) or not np.all(np.isfinite(points)) or points.min() <= 0:
        raise TableError("calibration needs end-to-end runs with positive times")
    sums, measured = points[:, 0], points[:, 1]
    overhead, factor = 0.0, float(np.sum(measured) / np.sum(sums))
    if sums.max() / sums.min() > 1.2:
        weights = 1.0 / measured  # relative errors count alike
        design = np.stack([np.ones_like(sums), sums], axis=1) * weights[:, None]
        solution = np.linalg.lstsq(design, measured * weights, rcond=None)[0]
        if solution[0] >= 0 and solution[1] > 0:
            overhead, factor = float(solution[0]), float(solution[1])
    elif corrections and np.median(measured - sums) >= 0:
        overhead, factor = float(np.median(measured - sums)), 1.0
    return Calibration(overhead, factor, dict(corrections or {}), len(points))


def load_calibration(table: LatencyTable, network: str, threads: int) -> Calibration | None:
    """The calibration kept for a network (its fingerprint), or None."""
    raw = table.get_calibration(network, threads)
    where = f"{table.path}: calibration {network}"
    return None if raw is None else Calibration.from_json(raw, where)


def save_calibration(
    table: LatencyTable, network: str, threads: int, calibration: Calibration
) -> None:
    """Keep a network's calibration in the table."""
    table.put_calibration(network, threads, calibration.to_json())
