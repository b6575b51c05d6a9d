"""Importance of every unit of every group, by a criterion chosen by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hwprune.coupling import Coupling
from hwprune.errors import HwpruneError
from hwprune.program import Program
from hwprune.progress import Advance
from hwprune.recover.sweep import as_batches
from hwprune.score.branches import own_layers, score_branches
from hwprune.score.combine import AGGREGATES, check_names, normalise_groups, producers
from hwprune.score.criterion import CRITERIA, GRADIENTS, SAMPLES, Criterion
from hwprune.score.evidence import Batch, Evidence, Gathered, Loss
from hwprune.score.gather import gather

Scores = Mapping[str, np.ndarray]
Images = Tensor | Sequence[Tensor]
IMAGES_PER_BATCH = 16


def score(
    program: Program,
    coupling: Coupling,
    importance: str = "l2",
    *,
    batches: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    images: Images | None = None,
    aggregate: str | None = None,
    normalize: str | None = None,
    seed: int = 0,
    progress: Advance | None = None,
) -> dict[str, np.ndarray]:
    """Score every unit: {group name: (width,) float64}, none negative.

    A branch has one score, beside those of the groups within.

    Args:
        importance: one of `CRITERIA`.
        batches: (inputs, labels) pairs and `loss`(outputs, labels), the mean over a batch, for
            gradients. Criteria that look at activations take the inputs.
        images: unlabelled inputs, (N, …) or a sequence of batches, where there are no labels:
            gradients are then of a random projection of the outputs.
        aggregate, normalize: of `AGGREGATES` and `NORMALISATIONS`; the criterion's own if None.
            With "share" each group's scores sum to the number of layers that produce it.
        seed: of random choices.
        progress: called with (batches seen, batches in all).

    Raises HwpruneError for an unknown name, or where the criterion's data are missing.
    """
    check_importance(importance, aggregate, normalize)
    criterion = CRITERIA[importance]
    evidence = _evidence(program, coupling, criterion, batches, loss, images, seed, progress)
    energies = _energies(evidence, coupling, criterion, aggregate)
    groups = {g.name: g for g in coupling.groups}
    scores = normalise_groups(energies, groups, normalize or criterion.normalize)
    branches = score_branches(evidence, coupling, criterion)
    layers = sum(producers(g) for g in groups.values())
    of_a_layer = sum(float(s.sum()) for s in scores.values()) / layers if layers else 1.0
    return scores | {name: worth * (of_a_layer or 1.0) for name, worth in branches.items()}


def check_importance(
    importance: str,
    aggregate: str | None = None,
    normalize: str | None = None,
    *,
    data: bool = True,
    gradients: bool = True,
) -> None:
    """Raise HwpruneError for an unknown name, or a criterion whose evidence is missing.

    `data` says whether there are any inputs, `gradients` whether also a loss, or images.
    """
    if importance not in CRITERIA:
        raise HwpruneError(
            f"unknown importance {importance!r}", hint=f"one of {', '.join(sorted(CRITERIA))}"
        )
    check_names(aggregate, normalize)
    needs = CRITERIA[importance].needs
    if needs and not (gradients if needs in (GRADIENTS, SAMPLES) else data):
        raise _missing(CRITERIA[importance])


def _energies(
    evidence: Evidence, coupling: Coupling, criterion: Criterion, aggregate: str | None
) -> dict[str, np.ndarray]:
    """Energies of every group; ones where the criterion knows nothing of it."""
    join = AGGREGATES[aggregate or criterion.aggregate]
    rows = {g.name: criterion(evidence, g) for g in coupling.groups}
    return {
        g.name: join(np.stack(rows[g.name])) if rows[g.name] else np.ones(g.width)
        for g in coupling.groups
    }


def _evidence(
    program: Program,
    coupling: Coupling,
    criterion: Criterion,
    batches: Iterable[Batch] | None,
    loss: Loss | None,
    images: Images | None,
    seed: int,
    progress: Advance | None,
) -> Evidence:
    """All that the criterion looks at; data are gathered only where it needs some."""
    tensors = {n: t.detach() for n, t in program.module.state_dict(keep_vars=True).items()}
    norms, data = _batch_norm_weights(program), Gathered()
    if criterion.needs:
        gradients = criterion.needs in (GRADIENTS, SAMPLES)
        given = _batches(program, criterion, batches, loss, images)
        owners = [*coupling.groups, *(g for own in own_layers(coupling).values() for g in own)]
        with_loss = loss if batches is not None and gradients else None
        advance = progress or (lambda done, total: None)
        data = gather(program, coupling, owners, criterion.needs, given, with_loss, seed, advance)
    return Evidence(tensors, norms, np.random.default_rng(seed), data)


def _batches(
    program: Program,
    criterion: Criterion,
    batches: Iterable[Batch] | None,
    loss: Loss | None,
    images: Images | None,
) -> list[Batch]:
    """What is run: labelled batches where there are some, else images, in batches."""
    if batches is not None and (loss is not None or criterion.needs not in (GRADIENTS, SAMPLES)):
        found: list[Batch] = [(as_tuple(inputs), labels) for inputs, labels in batches]
        if not found:
            raise HwpruneError(
                f"importance {criterion.name!r}: there are no batches", where="batches",
                hint="check the loader",
            )  # fmt: skip
        return found
    if images is None:
        raise _missing(criterion)
    cut = images.split(IMAGES_PER_BATCH) if isinstance(images, Tensor) else images
    return [(batch, None) for batch in as_batches(cut, program)]


def as_tuple(inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inputs of a batch, where one may be given by itself."""
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def _missing(criterion: Criterion) -> HwpruneError:
    if criterion.needs in (GRADIENTS, SAMPLES):
        return HwpruneError(
            f"importance {criterion.name!r} needs labelled batches and a loss, or images",
            hint="pass batches and loss, or calibrate; or use 'l2'",
        )
    return HwpruneError(
        f"importance {criterion.name!r} needs unlabelled images or batches",
        hint="pass calibrate; or use 'l2'",
    )


def _batch_norm_weights(program: Program) -> frozenset[str]:
    names = set()
    for node in program.module.graph.nodes:
        if node.op == "call_function" and "batch_norm" in str(node.target) and len(node.args) > 1:
            weight = node.args[1]
            if isinstance(weight, torch.fx.Node) and weight.op == "get_attr":
                names.add(str(weight.target))
    return frozenset(names)
