"""Pruning while a network trains: what the pruners of this kind have in common.

In: the user's own module, which they go on training, and budgets. Out: a `PruneResult`, once it
is finished. The module keeps its shapes until then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.coupling import Group, Site
from hwprune.errors import ArtifactError, HwpruneError
from hwprune.forms import AUTO, BOTH, HEADS, Forms
from hwprune.given import Model, as_program
from hwprune.importance import AUTO as AUTO_IMPORTANCE
from hwprune.importance import Importance
from hwprune.pipeline import prune
from hwprune.plan import Plan
from hwprune.prepare import prepare
from hwprune.program import Program
from hwprune.progress import Progress, Silent
from hwprune.recover.callback import Callback
from hwprune.request import read_request
from hwprune.result import PruneResult
from hwprune.score import Batch, Loss
from hwprune.ways.choose import Chooser


class DynamicPruner(Callback):
    """Scores the units of a network that trains, and says which are to go.

    Args:
        model: the module that is trained; a Program or a `.pt2` file is trained as `module`.
        every: how many calls of `step` lie between two choices of units.
        importance, batches, loss, seed: as `hwprune.prune` takes them; "auto" is "l2".

    Raises a HwpruneError subclass as `hwprune.prune` does.
    """

    def __init__(
        self,
        model: Model,
        inputs: Sequence[Tensor] | None = None,
        *,
        every: int = 1,
        target: str = "host",
        threads: int = 1,
        latency: str | float | None = None,
        macs: str | float | None = None,
        params: str | float | None = None,
        importance: str = AUTO_IMPORTANCE,
        attention: str = HEADS,
        grouped: str = AUTO,
        group_norm: str = AUTO,
        seed: int = 0,
        batches: Sequence[Batch] | None = None,
        loss: Loss | None = None,
        progress: Progress | None = None,
        name: str = "",
    ) -> None:
        if type(every) is not int or every < 1:
            raise HwpruneError(f"every {every!r} steps", where="every", hint="at least 1")
        request = read_request(
            target=target, threads=threads, latency=latency, macs=macs, params=params
        )
        if attention == BOTH:
            raise HwpruneError("needs one form", where="attention", hint="heads or head_dim")
        forms = Forms(attention, grouped, group_norm).checked()
        scoring = Importance(importance, seed=seed, batches=batches, loss=loss)
        scoring.check(images=False)
        self.program = as_program(model, inputs, name)
        self.module: nn.Module = model if isinstance(model, nn.Module) else self.program.module
        self.prepared = prepare(self.program, request.target, threads, **asdict(forms))
        self.groups = self.prepared.coupling.groups
        self.every, self.count = every, 0
        self._scorer = scoring.read(self.program).on(None)
        self._pruning: dict[str, Any] = {"target": target, "threads": threads, "seed": seed}
        self._chooser = Chooser(self.prepared, request.budgets, progress or Silent())
        self.plan = self._choose()

    def removed(self) -> dict[str, np.ndarray]:
        """Which units are to go as things stand: {group name: (width,) bool}."""
        return {g.name: ~np.isin(np.arange(g.width), self.plan.kept[g.name]) for g in self.groups}

    def step(self) -> None:
        """Tell that the module was trained a little more; what that means is the pruner's."""
        raise NotImplementedError

    def finish(self, *, recover: Any = "none", **options: Any) -> PruneResult:
        """Remove the units that are to go. `options` are further ones of `hwprune.prune`.

        `report["removal"]` says how far the outputs on the example inputs moved by it, relative to
        their largest value.
        """
        self._follow()
        options = {**self._pruning, **options, "recover": recover}
        result = prune(self.program, plan=self.plan, **options)
        if not callable(recover):
            moved = change(self.program, result.outcome.program)
            result.report["removal"] = {"max_rel_change": moved, **self._account()}
        return result

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold to go on."""
        return {"count": self.count, "plan": self.plan.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint. Raises HwpruneError where it is of another model."""
        if not {"count", "plan"} <= state.keys():
            raise ArtifactError("not the state of a pruner", hint="take what state_dict gave")
        plan = Plan.from_json(state["plan"])
        plan.check(self.prepared.coupling, self.plan.fingerprint, "the state of a pruner")
        self.plan, self.count = plan, int(state["count"])

    def _account(self) -> dict[str, Any]:
        """What a pruner adds to the report."""
        return {}

    def _choose(self) -> Plan:
        self._follow()
        training = self.program.module.training  # it may be the module that is trained
        self.program.module.eval()
        scores = self._scorer(self.program, self.prepared.coupling, lambda done, total: None)
        plan = self._chooser.choose(scores)
        self.program.module.train(training)
        return plan

    def _follow(self) -> None:
        """Give the captured program the module's tensors, where they are no longer the same."""
        mine = self.program.module.state_dict(keep_vars=True)
        theirs = self.module.state_dict(keep_vars=True)
        with torch.no_grad():
            for name in mine.keys() & theirs.keys():
                if mine[name] is not theirs[name]:
                    mine[name].copy_(theirs[name])

    def _slices(self, group: Group) -> Iterator[tuple[Site, nn.Parameter]]:
        """The parameters of the module that hold units of a group."""
        held = dict(self.module.named_parameters(remove_duplicate=False))
        seen: set[tuple[int, int]] = set()
        for site in group.sites:
            tensor = held.get(site.parameter)
            if tensor is not None and (id(tensor), site.dim) not in seen:
                seen.add((id(tensor), site.dim))
                yield site, tensor


def scale_units(tensor: Tensor, site: Site, group: Group, factors: np.ndarray) -> None:
    """Multiply what each unit owns of a tensor by its factor, (width,), in place."""
    along = np.ones(tensor.shape[site.dim])
    index = group.index[site]
    along[index.ravel()] = np.repeat(factors, index.shape[1])
    shape = [-1 if d == site.dim else 1 for d in range(tensor.ndim)]
    with torch.no_grad():
        tensor *= torch.from_numpy(along).to(tensor).reshape(shape)


def change(before: Program, after: Program) -> float:
    """How far outputs on the example inputs differ, relative to the largest of `before`."""
    found = []
    for program in (before, after):
        program.module.eval()
        with torch.no_grad():
            outputs = torch.utils._pytree.tree_leaves(program.module(*before.inputs))
        found.append([y for y in outputs if isinstance(y, Tensor) and y.is_floating_point()])
    worst = 0.0
    for a, b in zip(*found, strict=True):
        worst = max(worst, float((a - b).abs().max()) / max(float(a.abs().max()), 1e-30))
    return worst
