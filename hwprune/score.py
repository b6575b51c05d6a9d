"""Importance: a score for every unit of every group, comparable between groups.

In: a `Program`, its `Coupling`, and for some criteria batches and a loss. Out: `Scores`. A
criterion gives raw energies; `normalise` turns them into what a unit adds to its group's share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwprune.capture import Program
from hwprune.couple import Coupling
from hwprune.coupling import Branch, Group, Site
from hwprune.errors import HwpruneError

Scores = Mapping[str, np.ndarray]
Batch = tuple[Sequence[Tensor], Any]  # inputs, labels
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at: tensors by name, their gradients, the graph, a generator."""

    tensors: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    batch_norm_weights: frozenset[str]
    generator: np.random.Generator


Criterion = Callable[[Evidence, Group], np.ndarray]


def score(
    program: Program,
    coupling: Coupling,
    importance: str = "l2",
    *,
    batches: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Score every unit: {group name: (width,) float64}; each group's scores sum to its weight.

    A branch has one score, beside those of the groups within.

    Args:
        importance: one of `CRITERIA`.
        batches: (inputs, labels) pairs and `loss`(outputs, labels), for "taylor".

    Raises HwpruneError for an unknown criterion or missing batches.
    """
    if importance not in CRITERIA:
        raise HwpruneError(
            f"unknown importance {importance!r}", hint=f"one of {', '.join(sorted(CRITERIA))}"
        )
    gradients: dict[str, Tensor] = {}
    if importance == "taylor":
        if batches is None or loss is None:
            raise HwpruneError(
                "importance 'taylor' needs labelled batches and a loss", hint="or use 'l2'"
            )
        gradients = _gradients(program, batches, loss)
    tensors = {n: t.detach() for n, t in program.module.state_dict().items()}
    evidence = Evidence(
        tensors, gradients, _batch_norm_weights(program), np.random.default_rng(seed)
    )
    scores = {g.name: normalise(CRITERIA[importance](evidence, g), g) for g in coupling.groups}
    return scores | score_branches(evidence, coupling, importance)


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
    return scores * max(1, sum(1 for s in group.sites if s.dim == 0 and _is_weight(s, group)))


def _is_weight(site: Site, group: Group) -> bool:
    return (
        site.parameter.endswith("weight")
        and len(group.index[site]) > 0
        and (Site(site.parameter.removesuffix("weight") + "running_mean", 0) not in group.index)
    )


def _unit_sums(values: Tensor, site: Site, group: Group) -> np.ndarray:
    """Sum over everything but the site's axis, then over the indices of each unit: (width,)."""
    other = [d for d in range(values.ndim) if d != site.dim]
    per_index = values.double().sum(dim=other) if other else values.double()
    return np.asarray(per_index.cpu().numpy())[group.index[site]].sum(axis=1)


def _over_weights(
    evidence: Evidence, group: Group, raw: Callable[[str, Tensor], Tensor]
) -> np.ndarray:
    """Mean over the group's weight tensors of their per-unit sums, each scaled to mean one."""
    rows = []
    for site in group.sites:
        tensor = evidence.tensors[site.parameter]
        if tensor.ndim < 2 or not tensor.is_floating_point():
            continue
        sums = _unit_sums(raw(site.parameter, tensor), site, group)
        if sums.mean() > 0:
            rows.append(sums / sums.mean())
    return np.mean(rows, axis=0) if rows else np.ones(group.width)


def _l1(evidence: Evidence, group: Group) -> np.ndarray:
    """L1 norm of filters (Li et al., Pruning Filters for Efficient ConvNets, 2017)."""
    return _over_weights(evidence, group, lambda _, t: t.abs())


def _l2(evidence: Evidence, group: Group) -> np.ndarray:
    """Squared L2 norm over coupled tensors (Fang et al., DepGraph, 2023, group norm)."""
    return _over_weights(evidence, group, lambda _, t: t.double().square())


def _bn_scale(evidence: Evidence, group: Group) -> np.ndarray:
    """Batch-norm scales (Liu et al., Network Slimming, 2017); L2 where there is none."""
    rows = [
        _unit_sums(evidence.tensors[s.parameter].abs(), s, group)
        for s in group.sites
        if s.parameter in evidence.batch_norm_weights
    ]
    return np.mean(rows, axis=0) if rows else _l2(evidence, group)


def _taylor(evidence: Evidence, group: Group) -> np.ndarray:
    """Squared first-order change of the loss, (sum g w)^2 (Molchanov et al., 2019)."""
    total = np.zeros(group.width)
    for site in group.sites:
        gradient = evidence.gradients.get(site.parameter)
        if gradient is not None:
            total += _unit_sums(gradient * evidence.tensors[site.parameter], site, group) ** 2
    return total


def _random(evidence: Evidence, group: Group) -> np.ndarray:
    """Uniform random scores: the baseline that every criterion has to beat."""
    return evidence.generator.uniform(0.5, 1.5, group.width)


CRITERIA: dict[str, Criterion] = {
    "l1": _l1,
    "l2": _l2,
    "bn_scale": _bn_scale,
    "taylor": _taylor,
    "random": _random,
}


def score_branches(
    evidence: Evidence, coupling: Coupling, importance: str
) -> dict[str, np.ndarray]:
    """What silencing each branch costs beside the units of the groups within: {name: (1,)}.

    That is one for each layer whose outputs are no units within (it adds to the stream), times
    how strong these layers are among those of all branches. Where there are none it is one.
    """
    own = {b.name: _own(coupling, b) for b in coupling.branches}
    layers = {
        name: [n for n in mine if n.endswith("weight") and len(coupling.parameter_shapes[n]) > 1]
        for name, mine in own.items()
    }
    known = {n: _strength(evidence, own[n], read, importance) for n, read in layers.items() if read}
    mean = float(np.mean(list(known.values()))) if known else 0.0
    return {
        name: np.array([max(1, len(read)) * (known[name] / mean if read and mean > 0 else 1.0)])
        for name, read in layers.items()
    }


def _own(coupling: Coupling, branch: Branch) -> list[str]:
    """The parameters of a branch whose first axis holds no unit of a group within."""
    inside = {s for g in branch.groups for s in coupling.group(g).sites}
    mine = branch.parameters & coupling.parameter_shapes.keys()
    return sorted(n for n in mine if Site(n, 0) not in inside)


def _strength(
    evidence: Evidence, own: Sequence[str], layers: Sequence[str], importance: str
) -> float:
    """How strong the layers of a branch that add to the stream are, for each of their outputs."""
    if importance == "random":
        return float(evidence.generator.uniform(0.5, 1.5))
    scales = [evidence.tensors[n].double().abs() for n in own if n in evidence.batch_norm_weights]
    if importance == "bn_scale" and scales:
        return float(np.mean([float(scale.mean()) for scale in scales]))
    return float(np.mean([_energy(evidence, name, importance) for name in layers]))


def _energy(evidence: Evidence, name: str, importance: str) -> float:
    tensor = evidence.tensors[name].double().flatten(1)
    if importance == "taylor":
        gradient = evidence.gradients.get(name, torch.zeros_like(tensor)).reshape(tensor.shape)
        values = (gradient * tensor).sum(1).square()
    else:
        values = tensor.abs() if importance == "l1" else tensor.square()
    return float(values.sum()) / len(tensor)


def _batch_norm_weights(program: Program) -> frozenset[str]:
    names = set()
    for node in program.module.graph.nodes:
        if node.op == "call_function" and "batch_norm" in str(node.target) and len(node.args) > 1:
            weight = node.args[1]
            if isinstance(weight, torch.fx.Node) and weight.op == "get_attr":
                names.add(str(weight.target))
    return frozenset(names)


def _gradients(program: Program, batches: Iterable[Batch], loss: Loss) -> dict[str, Tensor]:
    """Mean gradient of the loss for every parameter, in evaluation mode."""
    module = program.module
    module.zero_grad(set_to_none=True)
    count = 0
    for inputs, labels in batches:
        loss(module(*inputs), labels).backward()
        count += 1
    found = {
        name: p.grad.detach().clone() / count
        for name, p in module.named_parameters()
        if p.grad is not None
    }
    module.zero_grad(set_to_none=True)
    if not found:
        raise HwpruneError("no batch gave a gradient", hint="check the loader and the loss")
    return found
