"""What allocation solves and what it answers: scores, candidate widths, costs and budgets.

In: `Scores`, candidate widths, `Cost`s and absolute budgets. Out: importance and exact cost of any
choice of widths, and the `Allocation` that a choice stands for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hwprune.cost import Cost

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
    """What is to be solved: scores, candidate widths, costs and absolute budgets by resource.

    A branch is a group with the candidates 0 and 1. `gates` name the branch that a group or an
    inner branch lies in: without it, its width is 0.
    """

    scores: Mapping[str, np.ndarray]
    candidates: Mapping[str, Sequence[int]]
    costs: Costs
    budgets: Mapping[str, float]
    gates: Mapping[str, str] = field(default_factory=dict)

    @property
    def full(self) -> dict[str, int]:
        """Every group at its largest candidate."""
        return {g: max(options) for g, options in self.candidates.items()}

    @property
    def smallest(self) -> dict[str, int]:
        """Every branch removed, and every other group at its smallest candidate."""
        return {g: 0 if g in self.gates else min(c) for g, c in self.candidates.items()}

    def narrower(self, widths: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """The widths that change, for one candidate less of each group in turn."""
        for group, options in self.candidates.items():
            less = [w for w in options if w < widths[group]]
            if less:
                gone = {g: 0 for g in self._within(group)} if not less[-1] else {}
                yield {group: less[-1], **gone}

    def wider(self, widths: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """The widths that change, for one candidate more of each group in turn."""
        for group, options in self.candidates.items():
            more = [w for w in options if w > widths[group]]
            if more and (group not in self.gates or widths[self.gates[group]]):
                yield {group: more[0], **(self._least(group) if not widths[group] else {})}

    def _within(self, branch: str) -> list[str]:
        """All that lies in a branch."""
        inside = [g for g, gate in self.gates.items() if gate == branch]
        return [*inside, *(g for inner in inside for g in self._within(inner))]

    def _least(self, branch: str) -> dict[str, int]:
        """The smallest widths of what lies in a branch, without the branches within."""
        return {g: min(self.candidates[g]) for g, gate in self.gates.items() if gate == branch}

    def loss(self, before: Mapping[str, int], change: Mapping[str, int]) -> float:
        """The importance that a change of widths takes away; negative where it adds some."""
        total = 0.0
        for group, width in change.items():
            sums = np.concatenate([[0.0], np.cumsum(np.sort(self.scores[group])[::-1])])
            total += float(sums[before[group]] - sums[width])
        return total

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
