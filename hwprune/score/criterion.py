"""`Criterion`: how the units of a group are told apart; all of them by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwprune.coupling import Group
from hwprune.score.evidence import Evidence

Rows = list[np.ndarray]
Rule = Callable[[Evidence, Group], Rows]

ACTIVATIONS, RANKS, COVARIANCES = "activations", "ranks", "covariances"
GRADIENTS, SAMPLES = "gradients", "gradients of single samples"


@dataclass(frozen=True)
class Criterion:
    """A rule that gives each member of a group (a parameter or a place) energies of its units.

    `rule` returns rows (width,), none where it knows nothing of the group. `needs` is what data
    must show for it, `aggregate` and `normalize` are its usual ways to join members and to compare
    groups. `relative` members are each scaled to mean one before they are joined.
    """

    name: str
    rule: Rule
    needs: str = ""
    aggregate: str = "mean"
    normalize: str = "share"
    relative: bool = True

    def __call__(self, evidence: Evidence, group: Group) -> Rows:
        """The rows of a group, each (width,), float64, at least 0."""
        rows = [np.maximum(np.asarray(r, np.float64), 0.0) for r in self.rule(evidence, group)]
        if not self.relative:
            return rows
        return [row / row.mean() for row in rows if row.mean() > 0]


CRITERIA: dict[str, Criterion] = {}


def criterion(
    name: str,
    *,
    needs: str = "",
    aggregate: str = "mean",
    normalize: str = "share",
    relative: bool = True,
) -> Callable[[Rule], Rule]:
    """Register a rule as the criterion of this name."""

    def register(rule: Rule) -> Rule:
        CRITERIA[name] = Criterion(name, rule, needs, aggregate, normalize, relative)
        return rule

    return register
