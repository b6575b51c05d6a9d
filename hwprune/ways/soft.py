"""Soft pruning (He et al., Soft Filter Pruning, 2018): weak filters are zeroed, and may grow again.

After each epoch units are chosen anew and the filters of those that are to go are set to zero. They
stay in the network and in training: a filter that matters grows again and is then chosen to stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwprune.result import PruneResult
from hwprune.ways.dynamic import DynamicPruner, scale_units


class SoftPruner(DynamicPruner):
    """`step()` after every epoch, `result = finish()` at the end; `finetune` takes it as callback.

    Only filters are zeroed, not biases and not what reads them: without these no gradient would
    reach a filter again. Removal therefore takes away what the biases of zeroed filters add, a
    constant; a short recovery gives it back.
    """

    regrown = 0
    """How many times a unit that was to go has come back."""

    def after_epoch(self, epoch: int) -> None:
        """As callback of `finetune`."""
        self.step()

    def step(self) -> None:
        """Choose the weak units anew and zero their filters, at every `every`-th call."""
        self.count += 1
        if self.count % self.every == 0:
            self._zero()

    def finish(self, *, recover: Any = "none", **options: Any) -> PruneResult:
        """Choose for the last time, and remove; see `DynamicPruner.finish`."""
        self._zero()
        return super().finish(recover=recover, **options)

    def _zero(self) -> None:
        before = self.removed()
        self.plan = self._choose()
        after = self.removed()
        if self.count > self.every:  # before the first zeroing nothing could grow again
            self.regrown += sum(int((before[g] & ~after[g]).sum()) for g in after)
        for group in self.groups:
            factors = np.where(after[group.name], 0.0, 1.0)
            for site, tensor in self._slices(group):
                if site.dim == 0 and tensor.ndim > 1:
                    scale_units(tensor, site, group, factors)

    def _account(self) -> dict[str, Any]:
        return {"way": "soft", "regrown": self.regrown}
