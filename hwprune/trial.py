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
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hwprune.plan import Plan
from hwprune.prepare import Prepared
from hwprune.program import Program, fingerprint
from hwprune.progress import Advance
from hwprune.recover import reconstruct
from hwprune.recover.sweep import as_batches
from hwprune.rewrite import kept_indices, rewrite

JUDGES, PART = 64, 4  # images that judge: at most so many, one of so many
LEAST = 32  # images; fewer are reconstructed from, and judge nothing
AT_ONCE = 16
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
        coupling, program = self.prepared.coupling, self.prepared.program
        plan = Plan(fingerprint(program), kept, {}, coupling.forms)
        return reconstruct(
            program,
            rewrite(program, coupling, plan),
            kept_indices(coupling, plan, program),
            self.images[self._judges :].split(AT_ONCE),
            seed=self.seed,
        ).program

    @property
    def _judges(self) -> int:
        return min(len(self.images) // PART, JUDGES) if self.judge else 0

    @cached_property
    def _batches(self) -> list[tuple[Tensor, ...]]:
        return as_batches(self.images[: self._judges].split(AT_ONCE), self.prepared.program)

    @cached_property
    def _whole(self) -> list[Tensor]:
        return self._outputs(self.prepared.program)

    def _outputs(self, program: Program) -> list[Tensor]:
        with torch.no_grad():
            found: list[Any] = [program.module(*batch) for batch in self._batches]
        leaves = (y for y in tree_leaves(found) if isinstance(y, Tensor))
        return [y.double() for y in leaves if y.is_floating_point()]

    def _error(self, program: Program) -> float:
        pairs = list(zip(self._outputs(program), self._whole, strict=True))
        wrong = sum(float((y - y0).square().sum()) for y, y0 in pairs)
        return wrong / max(sum(float(y0.square().sum()) for _, y0 in pairs), 1e-300)
