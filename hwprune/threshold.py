"""Pruning by threshold: units that are weak beside the others of their group go.

In: energies, a threshold. Out: which units are weak, and an `Allocation` without them. A unit's
strength is its energy over the mean of its group, however groups are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hwprune.coupling import Coupling
from hwprune.errors import HwpruneError
from hwprune.problem import Allocation, Problem

Weak = Mapping[str, np.ndarray]  # group name -> (width,) bool


def check_threshold(threshold: Any) -> float | None:
    """The threshold as a number in (0, 1], or None. Raises HwpruneError."""
    if threshold is None:
        return None
    try:
        value = float(threshold)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 < value <= 1:
        raise HwpruneError(
            f"{threshold!r} is not a threshold",
            where="threshold",
            hint="a number above 0 and at most 1: 0.01 removes what has less than 1% of the mean",
        )
    return value


def weak_units(
    energies: Mapping[str, np.ndarray], coupling: Coupling, threshold: float
) -> dict[str, np.ndarray]:
    """Which units have less than `threshold` times the mean energy of their group.

    Energies of a group may have any scale. The strongest of a group is never among them. Branches
    have no others to be weak beside. Raises HwpruneError where no unit is weak.
    """
    found = {g.name: _over_mean(energies[g.name]) for g in coupling.groups}
    weak = {name: values < threshold for name, values in found.items()}
    if not any(mask.any() for mask in weak.values()):
        least = min((float(values.min()) for values in found.values()), default=1.0)
        raise HwpruneError(
            f"no unit lies below {threshold:g} times the mean of its group, the weakest has "
            f"{least:.3g}",
            where="threshold",
            hint="raise the threshold, or give a budget instead",
        )
    return weak


def _over_mean(energies: np.ndarray) -> np.ndarray:
    mean = energies.mean()
    return np.asarray(energies / mean if mean > 0 else np.ones_like(energies))


def discount(scores: Mapping[str, np.ndarray], weak: Weak) -> dict[str, np.ndarray]:
    """The scores with those of weak units at zero, so that no budget is spent on them."""
    return {n: np.where(weak[n], 0.0, s) if n in weak else s for n, s in scores.items()}


def without(chosen: Allocation, weak: Weak, problem: Problem) -> Allocation:
    """An allocation without the weak units, priced anew.

    Of every group the narrowest candidate width stays: below a vector of channels nothing is
    gained.
    """
    if not weak:
        return chosen
    kept = {}
    for name, units in chosen.kept.items():
        strong = [u for u in units if name not in weak or not weak[name][u]]
        least = min(problem.candidates[name])
        if len(strong) < min(least, len(units)):
            ranked = sorted(units, key=lambda u: (weak[name][u], -problem.scores[name][u], u))
            strong = sorted(ranked[:least])
        kept[name] = tuple(strong)
    widths = {name: len(units) for name, units in kept.items()}
    predicted = {r: problem.price(r, widths) for r in problem.costs}
    return replace(chosen, kept=kept, predicted=predicted)
