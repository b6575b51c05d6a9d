"""What allocation solves and what it answers: scores, candidate widths, costs and budgets.

In: `Scores`, candidate widths, `Cost`s and absolute budgets. Out: importance and exact cost of any
choice of widths, and the `Allocation` that a choice stands for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwprune.price import Cost

Costs = Mapping[str, Sequence[Cost]]


@dataclass(frozen=True)
class Allocation:
    """Kept units per group, their importance, the bound on any allocation's, and exact costs."""

    kept: Mapping[str, tuple[int, ...]]
    objective: float
    bound: float
    gap: float
    seconds: float
    predicted: Mapping[str, float]

    def widths(self) -> dict[str, int]:
        """How many units each group keeps."""
        return {name: len(units) for name, units in self.kept.items()}


@dataclass(frozen=True)
class Problem:
    """What is to be solved: scores, candidate widths, costs and absolute budgets by resource."""

    scores: Mapping[str, np.ndarray]
    candidates: Mapping[str, Sequence[int]]
    costs: Costs
    budgets: Mapping[str, float]

    def values(self, group: str) -> np.ndarray:
        """Importance kept at every candidate width: the sum of the strongest units' scores."""
        ranked = np.sort(self.scores[group])[::-1]
        return np.concatenate([[0.0], np.cumsum(ranked)])[list(self.candidates[group])]

    def price(self, resource: str, widths: Mapping[str, int]) -> float:
        """The exact cost of a choice of widths."""
        return float(sum(cost.at(widths) for cost in self.costs[resource]))

    def worth(self, widths: Mapping[str, int]) -> float:
        """The importance kept by a choice of widths."""
        return float(sum(np.sort(s)[::-1][: widths[g]].sum() for g, s in self.scores.items()))

    def fits(self, widths: Mapping[str, int]) -> bool:
        """Whether every budget is met, exactly priced."""
        return all(self.price(r, widths) <= b * (1 + 1e-9) for r, b in self.budgets.items())

    def allocation(self, widths: Mapping[str, int], bound: float, started: float) -> Allocation:
        """The result for a choice of widths."""
        worth = self.worth(widths)
        order = {g: np.argsort(-s, kind="stable") for g, s in self.scores.items()}
        kept = {g: tuple(sorted(int(u) for u in o[: widths[g]])) for g, o in order.items()}
        gap = max(0.0, bound - worth) / max(abs(bound), 1e-12)
        predicted = {r: self.price(r, widths) for r in self.costs}
        seconds = time.perf_counter() - started
        return Allocation(kept, worth, bound, gap, seconds, predicted)
