"""Sensitivity: how much the network's outputs suffer when one group alone gets narrower.

In: a `Program`, its `Coupling`, the units' scores and data. Out: a `Sensitivity`, a curve for every
group. Nothing is compiled: where layers read the weakest units they get what recovery would make of
those that stay (`restore`). Units that no layer reads are silenced; groups that statistics run over
(the stream of a transformer) are measured as the smaller program, reconstructed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwprune.coupling import Coupling, Group
from hwprune.curves import Curve, Point, Sensitivity
from hwprune.errors import HwpruneError
from hwprune.frontier import Frontier
from hwprune.plan import Plan
from hwprune.program import Program, fingerprint
from hwprune.progress import Advance
from hwprune.recover.fidelity import OutputError, numbers
from hwprune.recover.reconstruct import reconstruct
from hwprune.restore import Moments
from hwprune.rewrite import kept_indices, rewrite
from hwprune.score import Batch, Loss, Scores
from hwprune.score.evidence import Read
from hwprune.score.gather import loss_of
from hwprune.score.reads import find_reads
from hwprune.skipped import Skipped

SHARES = (0.75, 0.5, 0.25, 0.0)


def measure_sensitivity(
    program: Program,
    coupling: Coupling,
    scores: Scores,
    batches: Sequence[Batch],
    *,
    fit: Sequence[Batch] = (),
    loss: Loss | None = None,
    importance: str = "",
    shares: Sequence[float] = SHARES,
    compensate: bool = True,
    file: Path | None = None,
    progress: Advance | None = None,
) -> Sensitivity:
    """Narrow every group alone, and measure what the outputs make of it.

    Args:
        scores: the weakest units of these go first.
        batches: (inputs, labels); labels are looked at with a `loss` only.
        fit: other inputs, that tell units that are gone from those that stay; without any, layers
            get the mean of what is gone.
        importance: what the scores are called in the file.
        shares: of each group's width that are kept; at least one unit is.
        compensate: whether layers get anything for units that are gone.
        file: written after every group; curves of the same settings in it are not measured again.
        progress: called with (groups done, groups in all).

    Raises HwpruneError where outputs are not finite, or the file is of another model or setting.
    """
    runner = _Runner(program, coupling, batches, fit, loss, compensate)
    inputs, fitted = (sum(len(given[0]) for given, _ in some) for some in (batches, fit))
    done = Sensitivity(
        fingerprint(program), program.name, importance, inputs, compensate, fitted, ()
    )
    done = _resumed(file, done)
    known = {c.group for c in done.curves}
    branches = {b.name for b in coupling.branches}
    for count, name in enumerate(runner.names()):
        if name not in known:
            order = np.argsort(-np.asarray(scores[name]), kind="stable")
            least = 0 if name in branches else 1
            widths = {len(order), *(max(least, round(len(order) * share)) for share in shares)}
            points = tuple(runner.points(name, order, sorted(widths, reverse=True)))
            done = replace(done, curves=(*done.curves, Curve(name, len(order), points)))
            if file is not None:
                done.save(file)
        if progress is not None:
            progress(count + 1, len(coupling.full))
    return done


def _resumed(file: Path | None, wanted: Sensitivity) -> Sensitivity:
    if file is None or not file.exists():
        return wanted
    found = Sensitivity.load(file)
    if replace(found, curves=(), model=wanted.model) != wanted:
        raise HwpruneError(
            "holds the curves of another model or other settings",
            where=str(file),
            hint="remove it, or write elsewhere",
        )
    return found


class _Runner:
    """Runs a network with some units of one group, and compares its outputs with the whole's."""

    def __init__(
        self,
        program: Program,
        coupling: Coupling,
        batches: Sequence[Batch],
        fit: Sequence[Batch],
        loss: Loss | None,
        compensate: bool,
    ) -> None:
        self.program, self.coupling = program, coupling
        self.batches, self.loss = batches, loss
        self.module = copy.deepcopy(program.module)
        self.reads: dict[str, list[Read]] = {}
        fit = fit if compensate else ()
        if compensate:
            found = find_reads(program, coupling).items()
            self.reads = {n: [r for r in some if not (r.output or r.passes)] for n, some in found}
        self.given = [inputs for inputs, _ in fit]
        self.skipped = Skipped(program.module, coupling, self.given)
        self.fit = range(len(batches), len(batches) + len(fit))
        self.frontier = Frontier(self.module, [*(x for x, _ in batches), *self.given])
        outputs = [self.frontier.finish(i) for i in range(len(batches))]
        self.whole = [numbers(some) for some in outputs]
        if not all(bool(y.isfinite().all()) for some in self.whole for y in some):
            raise HwpruneError("the network's outputs are not finite", where=program.name)
        for i, some in enumerate(outputs if loss is not None else ()):
            assert loss is not None
            loss_of(loss, some, batches[i][1], f"batch {i}")

    def names(self) -> list[str]:
        """Groups in the order of the network, then branches."""
        place = {n.name: i for i, n in enumerate(self.module.graph.nodes)}
        first = {
            g.name: min((place[n] for n in self._begin(g)), default=0) for g in self.coupling.groups
        }
        return [*sorted(first, key=lambda g: first[g]), *(b.name for b in self.coupling.branches)]

    def points(self, name: str, order: np.ndarray, widths: Sequence[int]) -> Iterator[Point]:
        """The points of a group or branch: at each width the first units of `order` stay."""
        if name in self.skipped.branches:
            yield self._compare(partial(self._run, self.program.module), 1)
            yield self._compare(partial(self._run, self.skipped.without(name)), 0)
            return
        group = self.coupling.group(name)
        self.frontier.advance(self._begin(group))
        moments = [] if group.through_norm_statistics else self._moments(name)
        for width in widths:
            if group.through_norm_statistics:
                smaller = self._smaller(name, order[:width])
                yield self._compare(partial(self._run, smaller), width)
            elif moments:
                gone = order[width:]
                reads = {r.layer.node.name: m.restore(_channels(r, gone)) for r, m in moments}
                yield self._compare(partial(self.frontier.finish, reads=reads), width)
            else:
                with silenced(self.module, group, order[width:]):
                    yield self._compare(self.frontier.finish, width)

    def _run(self, network: Callable[..., Any], batch: int) -> Any:
        return network(*self.batches[batch][0])

    def _moments(self, name: str) -> list[tuple[Read, Moments]]:
        """What the inputs show where layers that stay read a group; none if it is read nowhere."""
        reads = self.reads.get(name, [])
        told = [(r, bool(self.fit) and r.layer.groups == 1) for r in reads]
        found = {r.layer.node.name: Moments(r.dim, joint) for r, joint in told}
        for batch in self.fit or range(len(self.batches)):
            for node, value in self.frontier.look(batch, frozenset(found)):
                found[node].add(value)
        return [(r, found[r.layer.node.name]) for r in reads]

    def _begin(self, group: Group) -> frozenset[str]:
        """The nodes that see a change of a group: that read its units, or its parameters."""
        if self.reads.get(group.name) and not group.through_norm_statistics:
            return frozenset(read.layer.node.name for read in self.reads[group.name])
        names = {site.parameter for site in group.sites}
        found = (n for n in self.module.graph.nodes if n.op == "get_attr")
        mine = (n for n in found if self.coupling.aliases.get(n.target, n.target) in names)
        return frozenset(user.name for node in mine for user in node.users)

    def _smaller(self, name: str, kept: np.ndarray) -> torch.fx.GraphModule:
        plan = Plan.full(self.coupling, fingerprint(self.program))
        units = {**plan.kept, name: tuple(sorted(int(u) for u in kept))}
        plan = replace(plan, kept=units)
        smaller = rewrite(self.program, self.coupling, plan)
        if self.given and len(kept) < self.coupling.group(name).width:
            indices = kept_indices(self.coupling, plan, self.program)
            smaller = reconstruct(self.program, smaller, indices, self.given).program
        return smaller.module

    def _compare(self, run: Callable[[int], Any], width: int) -> Point:
        """A point, from a function that gives the outputs of a batch."""
        error = OutputError()
        lost, right, count = 0.0, 0, 0
        for i, (inputs, labels) in enumerate(self.batches):
            with torch.no_grad():
                outputs = run(i)
            error.add(outputs, self.whole[i])
            if self.loss is not None:
                count += len(inputs[0])
                lost += float(self.loss(outputs, labels)) * len(inputs[0])
                right += _right(outputs, labels)
        if self.loss is None:
            return Point(width, error.value)
        return Point(width, error.value, lost / count, right / count if right >= 0 else None)


def _channels(read: Read, units: np.ndarray) -> Tensor:
    """Where these units are in what a layer reads."""
    return torch.from_numpy(read.index[units].reshape(-1))


def _right(outputs: Any, labels: Any) -> int:
    """How many are classified right; hugely negative where the outputs are no classes."""
    classes = isinstance(outputs, Tensor) and outputs.ndim == 2 and isinstance(labels, Tensor)
    if not classes or labels.shape != outputs.shape[:1] or labels.is_floating_point():
        return -(1 << 60)
    return int((outputs.argmax(1) == labels).sum())


@contextmanager
def silenced(module: torch.nn.Module, group: Group, units: np.ndarray) -> Iterator[None]:
    """Within the block, all that these units own of the parameters and buffers is zero."""
    state = dict(module.state_dict(keep_vars=True))
    before: list[tuple[Tensor, Tensor]] = []
    try:
        for site in group.sites:
            tensor = state[site.parameter].detach()
            before.append((tensor, tensor.clone()))
            rows = torch.from_numpy(group.index[site][units].reshape(-1)).to(tensor.device)
            tensor.index_fill_(site.dim, rows, 0)
        yield
    finally:
        for tensor, kept in reversed(before):
            tensor.copy_(kept)
