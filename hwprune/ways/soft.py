"""Soft pruning (He et al., Soft Filter Pruning, 2018): weak filters are zeroed, and may grow again.

After each epoch units are chosen anew and the filters of those that are to go are set to zero. They
stay in the network and in training: a filter that matters grows again and is then chosen to stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwprune.result import PruneResult
from hwprune.ways.dynamic import DynamicPruner, scale_units


class SoftPruner(DynamicPruner):
    """`step()` after every epoch, `result = finish()` at the end; `finetune` takes it as callback.

    Only filters are zeroed, not biases and not what reads them: without these no gradient would
    reach a filter again. Removal therefore takes away what the biases of zeroed filters add, a
    constant; a short recovery gives it back. Layers are reconstructed after the network as it was
    trained: what the last zeroing took is remembered.
    """

    regrown = 0
    """How many times a unit that was to go has come back."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._zeroed: dict[str, Tensor] = {}  # parameters as they were before the last zeroing

    def after_epoch(self, epoch: int) -> None:
        """As callback of `finetune`."""
        self.step()

    def step(self) -> None:
        """Choose the weak units anew and zero their filters, at every `every`-th call."""
        self.count += 1
        if self.count % self.every == 0:
            self._choose_anew()
            self._zero()

    def finish(self, *, recover: Any = "none", **options: Any) -> PruneResult:
        """Choose for the last time, and remove; see `DynamicPruner.finish`."""
        self._restore()
        self._choose_anew()
        if options.get("calibrate") is None or recover not in ("auto", "reconstruct"):
            self._zero()
        return super().finish(recover=recover, **options)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold to go on."""
        return super().state_dict() | {"zeroed": dict(self._zeroed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint. Raises HwpruneError where it is of another model."""
        super().load_state_dict(state)
        self._zeroed = {name: tensor.clone() for name, tensor in state.get("zeroed", {}).items()}

    def _restore(self) -> None:
        """Give filters that are zero what the last zeroing took, unless they were trained since."""
        held = dict(self.module.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, before in self._zeroed.items():
                now = held[name]
                now.copy_(torch.where(now == 0, before.to(now), now))

    def _choose_anew(self) -> None:
        before = self.removed()
        self.plan = self._choose()
        after = self.removed()
        if self.count > self.every:  # before the first zeroing nothing could grow again
            self.regrown += sum(int((before[g] & ~after[g]).sum()) for g in after)

    def _zero(self) -> None:
        removed, self._zeroed = self.removed(), {}
        for group in self.groups:
            factors = np.where(removed[group.name], 0.0, 1.0)
            for site, tensor in self._slices(group):
                if site.dim == 0 and tensor.ndim > 1:
                    self._zeroed.setdefault(site.parameter, tensor.detach().clone())
                    scale_units(tensor, site, group, factors)

    def _account(self) -> dict[str, Any]:
        return {"way": "soft", "regrown": self.regrown}
