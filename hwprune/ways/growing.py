"""Growing regularisation (Wang et al., Neural Pruning via Growing Regularization, 2021).

An L2 penalty on all that a unit owns, in every coupled parameter, grows step by step until the
unit is zero: the network adapts meanwhile, and removal costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hwprune.errors import HwpruneError
from hwprune.pipeline import Model
from hwprune.ways.dynamic import DynamicPruner, scale_units

SHRINK = 1e-8  # what the penalty alone leaves of a unit that is chosen half-way
STRONGEST = 4.0
CHOICES = 10  # how often units are chosen anew in the first half


class GrowingRegularizer(DynamicPruner):
    """`step()` after every optimiser step, `steps` times; then `result = finish()`.

    The penalty is applied as its proximal step, w / (1 + penalty), beside any optimiser. In the
    first half units are chosen anew `CHOICES` times; the penalty of one that is to stay after all
    shrinks again. `report["removal"]["left"]` is the largest root mean square of a unit that went
    relative to that of its group's parameters at the start.
    """

    def __init__(
        self, model: Model, inputs: Sequence[Tensor] | None = None, *, steps: int, **options: Any
    ) -> None:
        if type(steps) is not int or steps < 2 * CHOICES:
            raise HwpruneError(f"{steps!r} steps", where="steps", hint=f"at least {2 * CHOICES}")
        options.setdefault("every", max(1, steps // (2 * CHOICES)))
        super().__init__(model, inputs, **options)
        self.steps = steps
        self.growth = 8 * math.log(1 / SHRINK) / steps**2
        self.penalty = {g.name: np.zeros(g.width) for g in self.groups}
        self._start = {g.name: float(self._strength(g.name).mean()) for g in self.groups}

    def after_step(self, step: Any) -> None:
        """As callback of `finetune`."""
        self.step()

    def step(self) -> None:
        """Let the penalty grow and apply it."""
        self.count += 1
        if self.count % self.every == 0 and self.count <= self.steps // 2:
            self.plan = self._choose()
        removed = self.removed()
        for group in self.groups:
            up = np.where(removed[group.name], self.growth, -self.growth)
            grown = np.clip(self.penalty[group.name] + up, 0.0, STRONGEST)
            self.penalty[group.name] = grown
            for site, tensor in self._slices(group):
                scale_units(tensor, site, group, 1 / (1 + grown))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold to go on."""
        penalty = {name: values.tolist() for name, values in self.penalty.items()}
        return super().state_dict() | {"penalty": penalty}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint. Raises HwpruneError where it is of another model."""
        super().load_state_dict(state)
        self.penalty = {name: np.array(values) for name, values in state["penalty"].items()}

    def _strength(self, name: str) -> np.ndarray:
        """The root mean square of what each unit owns, (width,)."""
        group = self.prepared.coupling.group(name)
        squares, sizes = np.zeros(group.width), 0
        for site, tensor in self._slices(group):
            rows = tensor.detach().double().square().movedim(site.dim, 0)
            rows = rows.reshape(len(rows), -1).sum(1)
            squares += rows.cpu().numpy()[group.index[site]].sum(axis=1)
            sizes += tensor.numel() // tensor.shape[site.dim] * group.index[site].shape[1]
        return np.sqrt(squares / max(sizes, 1))

    def _account(self) -> dict[str, Any]:
        left = [
            float(self._strength(name)[mask].max()) / max(self._start[name], 1e-30)
            for name, mask in self.removed().items()
            if mask.any()
        ]
        return {"way": "growing", "steps": self.count, "left": max(left, default=0.0)}
