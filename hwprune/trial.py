"""Plans tried out: each is reconstructed, and its outputs compared with the dense network's.

In: a `Prepared` network, unlabelled images, plans as kept units. Out: the plan that is nearest.
Images that judge are not among those that layers are reconstructed from. What units are worth is
an estimate; this is the thing itself, for as many plans as there is time for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hwprune.given import RECOVERED_AT_ONCE
from hwprune.prepare import Prepared, carry_out
from hwprune.program import Program
from hwprune.progress import Advance
from hwprune.recover import reconstruct
from hwprune.recover.fidelity import OutputError, numbers
from hwprune.recover.sweep import as_batches
from hwprune.rewrite import kept_indices

JUDGES, PART = 64, 4  # images that judge: at most so many, one of so many
LEAST = 32  # images; fewer are reconstructed from, and judge nothing
Kept = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Trials:
    """The dense network, and images to reconstruct from and to judge by."""

    prepared: Prepared
    images: Tensor
    seed: int = 0

    @property
    def judge(self) -> bool:
        """Whether there are images enough to tell plans apart."""
        return len(self.images) >= LEAST

    def best(self, plans: Sequence[Kept], advance: Advance) -> tuple[Kept, Program]:
        """The plan whose outputs are nearest the dense network's, and its reconstructed network.

        Nearest by |y - y0|^2 / |y0|^2 over the images that judge; the first of equals.
        """
        best: tuple[Kept, Program] | None = None
        least = math.inf
        for done, kept in enumerate(plans):
            if kept not in plans[:done]:
                program = self.reconstructed(kept)
                error = self._error(program)
                if best is None or error < least:
                    best, least = (kept, program), error
            advance(done + 1, len(plans))
        assert best is not None, "no plans"
        return best

    def reconstructed(self, kept: Kept) -> Program:
        """The smaller network, its layers corrected from the images that do not judge."""
        dense = self.prepared.program
        plan, smaller = carry_out(self.prepared, kept)
        indices = kept_indices(self.prepared.coupling, plan, dense)
        images = self.images[self._judges :].split(RECOVERED_AT_ONCE)
        return reconstruct(dense, smaller, indices, images, seed=self.seed).program

    @property
    def _judges(self) -> int:
        return min(len(self.images) // PART, JUDGES) if self.judge else 0

    @cached_property
    def _batches(self) -> list[tuple[Tensor, ...]]:
        return as_batches(
            self.images[: self._judges].split(RECOVERED_AT_ONCE), self.prepared.program
        )

    @cached_property
    def _whole(self) -> list[list[Tensor]]:
        with torch.no_grad():
            return [numbers(self.prepared.program.module(*batch)) for batch in self._batches]

    def _error(self, program: Program) -> float:
        error = OutputError()
        with torch.no_grad():
            for batch, whole in zip(self._batches, self._whole, strict=True):
                error.add(program.module(*batch), whole)
        return error.value
