"""Importance as it is asked for: a criterion, how members are joined, and how groups are compared.

In: names, and the data there are. Out: a function from a coupled program to `Scores`. Images that
later judge the result are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from hwprune.coupling import Coupling
from hwprune.curves import weigh
from hwprune.errors import HwpruneError
from hwprune.given import recover_part
from hwprune.program import Program
from hwprune.progress import Advance
from hwprune.recover.sweep import as_batches
from hwprune.score import CRITERIA, NORMALISATIONS, Batch, Loss, Scores, check_importance
from hwprune.score.batches import as_tuple, read_batches
from hwprune.score.scoring import Energies, compare, find_energies
from hwprune.sensitivity import measure_sensitivity

AUTO, SENSITIVITY, USUAL = "auto", "sensitivity", "share"
INPUTS = BATCH = 16  # that sensitivity is judged on
FIT = 48  # others, that tell what the gone can be restored from


@dataclass(frozen=True)
class Importance:
    """How units are scored; None is the usual way, as is the criterion "auto".

    With images that is "reconstruction", groups compared by sensitivity; else "l2", by shares. On
    EfficientNet-Lite0 more than twice as much is left (docs/importance.md).
    """

    criterion: str = AUTO
    aggregate: str | None = None
    normalize: str | None = None
    seed: int = 0
    batches: Sequence[Batch] | None = None
    loss: Loss | None = None

    def name(self, images: bool) -> str:
        """The criterion's name, given whether there are images."""
        if self.criterion != AUTO:
            return self.criterion
        return "reconstruction" if images else "l2"

    def weighed(self, images: bool) -> bool:
        """Whether groups are compared by sensitivity."""
        known = CRITERIA.get(self.name(images))
        usual = images and known is not None and known.normalize == USUAL
        return self.normalize == SENSITIVITY or (self.normalize is None and usual)

    def check(self, images: bool) -> None:
        """Raise HwpruneError for an unknown name, or where data are missing; before long work."""
        if self.criterion not in (AUTO, *CRITERIA):
            raise HwpruneError(
                f"unknown importance {self.criterion!r}",
                where="importance",
                hint=f"one of {', '.join((AUTO, *sorted(CRITERIA)))}",
            )
        weighed = self.weighed(images)
        if self.normalize is not None and self.normalize not in (*NORMALISATIONS, SENSITIVITY):
            known = ", ".join(sorted((*NORMALISATIONS, SENSITIVITY)))
            raise HwpruneError(
                f"unknown normalize {self.normalize!r}", where="normalize", hint=f"one of {known}"
            )
        data = images or self.batches is not None
        own = None if weighed else self.normalize
        gradients = images or (data and self.loss is not None)
        name = self.name(images)
        check_importance(name, self.aggregate, own, data=data, gradients=gradients)
        if weighed and not data:
            raise HwpruneError(
                "normalize 'sensitivity' needs unlabelled images or batches", hint="pass calibrate"
            )

    @staticmethod
    def among(options: Mapping[str, Any]) -> Importance:
        """What options of `hwprune.prune` by name, some perhaps not given, say of it."""
        names = ("aggregate", "normalize", "batches", "loss")
        given = {name: options[name] for name in names if name in options}
        return Importance(options.get("importance", AUTO), **given)

    def read(self, program: Program) -> Importance:
        """The same with its batches read, once, and checked against the program."""
        if self.batches is None:
            return self
        return replace(self, batches=read_batches(self.batches, program))

    def on(self, images: Tensor | None) -> Scorer:
        """What scores the units of a program, given what images there are."""
        return Scorer(self, None if images is None else recover_part(images))


@dataclass(frozen=True)
class Scorer:
    """Importance, and the images that may be looked at."""

    asked: Importance
    images: Tensor | None

    def __call__(self, program: Program, coupling: Coupling, advance: Advance) -> Scores:
        """Scores that compare between groups."""
        return self.scored(program, coupling, advance)[0]

    def scored(
        self, program: Program, coupling: Coupling, advance: Advance
    ) -> tuple[Scores, Energies]:
        """Scores that compare between groups, and the energies that they are made of."""
        asked, weighed = self.asked, self.asked.weighed(self.images is not None)
        images = unjudged(self.images) if weighed else self.images
        energies = find_energies(
            program, coupling, asked.name(images is not None), batches=asked.batches,
            loss=asked.loss, images=images, aggregate=asked.aggregate, seed=asked.seed,
            progress=advance,
        )  # fmt: skip
        scores = compare(energies, coupling, None if weighed else asked.normalize)
        if not weighed:
            return scores, energies
        judged, fit = sensitivity_batches(program, self.images, asked.batches)
        found = measure_sensitivity(program, coupling, scores, judged, fit=fit, progress=advance)
        return weigh(scores, found), energies

    def others(
        self, program: Program, coupling: Coupling, scores: Scores, advance: Advance
    ) -> list[Scores]:
        """Other opinions of the same units, which keep the order that they have in their groups.

        One by layers that get the mean of what is gone, where it was told from what stays.
        """
        if not self.asked.weighed(self.images is not None):
            return []
        judged, fit = sensitivity_batches(program, self.images, self.asked.batches)
        if not fit:
            return []
        found = measure_sensitivity(program, coupling, scores, judged, progress=advance)
        return [weigh(scores, found)]


def unjudged(images: Tensor | None) -> Tensor | None:
    """The images to score units by, without those that sensitivity is judged on; all of too few.

    A unit that is silent on all of them looks free on them, and is not on others.
    """
    enough = images is not None and len(images) >= INPUTS + BATCH
    return images[INPUTS:] if enough and images is not None else images


def sensitivity_batches(
    program: Program, images: Tensor | None, batches: Sequence[Batch] | None, most: int = INPUTS
) -> tuple[list[Batch], list[Batch]]:
    """The batches that sensitivity is judged on, with about `most` inputs, and those to fit on.

    Of images if there are any. Too few are judged on alone.
    """
    judged: list[Batch] = []
    fit: list[Batch] = []
    if images is not None:
        judged += [(x, None) for x in as_batches(images[:most].split(BATCH), program)]
        fit += [(x, None) for x in as_batches(images[most : most + FIT].split(BATCH), program)]
    for inputs, labels in (batches or ()) if images is None else ():
        if _size(judged) < most:
            judged.append((as_tuple(inputs), labels))
        elif _size(fit) < FIT:
            fit.append((as_tuple(inputs), labels))
    return judged, fit if _size(fit) >= BATCH else []


def _size(batches: Sequence[Batch]) -> int:
    return sum(len(inputs[0]) for inputs, _ in batches)
