"""From energies of a group's members to scores that compare between groups.

`aggregate` joins the members (parameters or places) of one group; `normalise_groups` makes the
groups comparable. Both are chosen by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from hwprune.coupling import Group, Site
from hwprune.errors import HwpruneError

AGGREGATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sum": lambda rows: np.asarray(rows.sum(axis=0)),
    "mean": lambda rows: np.asarray(rows.mean(axis=0)),
    "max": lambda rows: np.asarray(rows.max(axis=0)),
    "first": lambda rows: np.asarray(rows[0]),
}
"""(members, width) -> (width,)."""


def normalise(energy: np.ndarray, group: Group) -> np.ndarray:
    """Raw energies -> scores that sum to the number of layers that produce the group.

    A unit's score is what it adds to 1 - (lost share of energy)^2, units taken from the strongest
    down: sums of scores compare across groups, and a group that has lost much already is worth
    more than one that has lost little, so that no layer is emptied for another.
    """
    energy = np.maximum(np.asarray(energy, np.float64), 0.0)
    order = np.argsort(-energy, kind="stable")
    total = energy.sum()
    share = (
        np.cumsum(energy[order]) / total if total > 0 else np.arange(1, len(order) + 1) / len(order)
    )
    utility = 1 - (1 - share) ** 2
    scores = np.empty_like(energy)
    scores[order] = np.diff(utility, prepend=0.0)
    return scores * producers(group)


def producers(group: Group) -> int:
    """How many layers produce a group's units; at least one."""
    return max(1, sum(1 for s in group.sites if s.dim == 0 and _is_weight(s, group)))


def _is_weight(site: Site, group: Group) -> bool:
    return (
        site.parameter.endswith("weight")
        and len(group.index[site]) > 0
        and (Site(site.parameter.removesuffix("weight") + "running_mean", 0) not in group.index)
    )


Normalisation = Callable[[np.ndarray, Group], np.ndarray]


def _over(scale: Callable[[np.ndarray], float]) -> Normalisation:
    def normalised(energy: np.ndarray, group: Group) -> np.ndarray:
        by = scale(energy)
        return energy / by if by > 0 else np.full_like(energy, 1 / group.width)

    return normalised


def _gaussian(energy: np.ndarray, group: Group) -> np.ndarray:
    deviation = energy.std()
    return np.zeros_like(energy) if deviation == 0 else (energy - energy.mean()) / deviation


NORMALISATIONS: dict[str, Normalisation] = {
    "share": normalise,
    "none": lambda energy, group: energy,
    "sum": _over(lambda energy: float(energy.sum())),
    "mean": _over(lambda energy: float(energy.mean())),
    "max": _over(lambda energy: float(energy.max())),
    "gaussian": _gaussian,
}
"""Energies of a group (width,) -> scores. "gaussian" has mean zero and deviation one."""


def normalise_groups(
    energies: Mapping[str, np.ndarray], groups: Mapping[str, Group], how: str
) -> dict[str, np.ndarray]:
    """Scores by group; none is negative: all are raised by what the least lacks."""
    scores = {g: NORMALISATIONS[how](energy, groups[g]) for g, energy in energies.items()}
    least = min((float(s.min()) for s in scores.values()), default=0.0)
    return {g: s - least for g, s in scores.items()} if least < 0 else scores


def check_names(aggregate: str | None, normalize: str | None) -> None:
    """Raise HwpruneError for an unknown aggregation or normalisation."""
    for name, known, where in (
        (aggregate, AGGREGATES, "aggregate"),
        (normalize, NORMALISATIONS, "normalize"),
    ):
        if name is not None and name not in known:
            raise HwpruneError(
                f"unknown {where} {name!r}", where=where, hint=f"one of {', '.join(sorted(known))}"
            )
