"""`Plan`: which units every group keeps, and what that is predicted to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Plan:
    """Kept unit indices (sorted) per group name, for the program with this fingerprint.

    `predicted` has at least the budgets' resources: latency_us, macs, params.
    """

    fingerprint: str
    kept: Mapping[str, tuple[int, ...]]
    predicted: Mapping[str, float] = field(default_factory=dict)

    def widths(self) -> dict[str, int]:
        """How many units each group keeps."""
        return {name: len(units) for name, units in self.kept.items()}
