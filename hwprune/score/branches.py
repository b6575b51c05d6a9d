"""The score of a residual branch: what silencing it costs beside the units of the groups within."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hwprune.coupling import Branch, Coupling, Group, Site
from hwprune.score.criterion import ACTIVATIONS, COVARIANCES, RANKS, Criterion, Rule
from hwprune.score.evidence import Evidence
from hwprune.score.gradients import obd
from hwprune.score.weights import l2

INSTEAD: Mapping[str, Rule] = {"lamp": l2, "fisher": obd}
"""For criteria that say nothing of how strong a whole layer is."""


def own_layers(coupling: Coupling) -> dict[str, tuple[Group, ...]]:
    """By branch: its layers whose outputs are no units within, each as a group of its outputs."""
    return {
        branch.name: tuple(
            Group(name, shape[0], {Site(name, 0): np.arange(shape[0])[:, None]})
            for name in _own(coupling, branch)
            if name.endswith("weight") and len(shape := coupling.parameter_shapes[name]) > 1
        )
        for branch in coupling.branches
    }


def score_branches(
    evidence: Evidence, coupling: Coupling, criterion: Criterion
) -> dict[str, np.ndarray]:
    """What silencing each branch costs beside the units of the groups within: {name: (1,)}.

    That is one for each layer whose outputs are no units within (it adds to the stream), times
    how strong these layers are among those of all branches. Where there are none it is one.
    """
    layers = own_layers(coupling)
    known = {
        b.name: _strength(evidence, b, _own(coupling, b), layers[b.name], criterion)
        for b in coupling.branches
        if layers[b.name]
    }
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
    evidence: Evidence,
    branch: Branch,
    own: Sequence[str],
    layers: Sequence[Group],
    criterion: Criterion,
) -> float:
    """How strong the layers of a branch that add to the stream are, for each of their outputs.

    By activations it is what they add, as a share of the sum.
    """
    if criterion.name == "random":
        return float(evidence.generator.uniform(0.5, 1.5))
    if criterion.needs in (ACTIVATIONS, RANKS, COVARIANCES):
        return evidence.data.branches.get(branch.name, 0.0)
    scales = [evidence.tensors[n].double().abs() for n in own if n in evidence.batch_norm_weights]
    if criterion.name == "bn_scale" and scales:
        return float(np.mean([float(scale.mean()) for scale in scales]))
    rule = INSTEAD.get(criterion.name, criterion.rule)
    means = [float(np.mean(row)) for layer in layers for row in rule(evidence, layer)]
    return float(np.mean(means)) if means else 0.0
