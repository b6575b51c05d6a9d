"""Batch-norm statistics of a pruned network, re-estimated from unlabelled batches.

Pruning changes what reaches a batch norm, so its running statistics are stale. They are
estimated in network order over all images together: each norm sees inputs that the norms
before it have already put right.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from hwprune.capture import Program
from hwprune.recover.sweep import as_batches, attribute, sweep

Kept = Mapping[str, Mapping[int, np.ndarray]]
BATCH_NORM = torch.ops.aten.batch_norm.default


@dataclass(frozen=True)
class Moments:
    """Mean and biased variance per channel, float64, and how many values each is of."""

    mean: Tensor
    var: Tensor
    count: int


def moments(values: Sequence[Tensor]) -> Moments:
    """Over all batches together, all dimensions but 1."""
    total, square, count = None, None, 0
    for value in values:
        dims = [d for d in range(value.ndim) if d != 1]
        part = value.double()
        sums, squares = part.sum(dims), part.square().sum(dims)
        total = sums if total is None else total + sums
        square = squares if square is None else square + squares
        count += value.numel() // value.shape[1]
    assert total is not None
    assert square is not None
    mean = total / count
    return Moments(mean, (square / count - mean.square()).clamp_min(0.0), count)


def reestimate_norms(
    program: Program,
    batches: Iterable[Tensor | Sequence[Tensor]],
    *,
    dense: Program | None = None,
    kept: Kept | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Program:
    """A copy of `program` whose batch norms have the statistics of these images.

    Args:
        program: the pruned network.
        batches: images (N, …) without labels, one tensor or tuple of inputs per batch.
        dense: where given, the statistics are chosen so that each normalised channel has the
            mean and variance on these images that it has in the *dense* network, which stays
            right for images that are not like those it was trained on.
        kept: kept indices per parameter name and dimension; needed with `dense`.
        progress: called with (norms done, norms in all).

    Without `dense` these are the statistics of one training-mode batch of all images.
    """
    cut = as_batches(batches, program)
    fresh = replace(program, module=copy.deepcopy(program.module))
    reference = {} if dense is None else dense_moments(dense, cut, kept or {})
    total = sum(node.target is BATCH_NORM for node in fresh.module.graph.nodes)
    done = 0

    def before(node: fx.Node, fetch: Callable[[Any], list[Any]]) -> None:
        nonlocal done
        if node.target is not BATCH_NORM:
            return
        set_statistics(fresh.module, node, moments(fetch(node.args[0])), reference.get(node.name))
        done += 1
        if progress is not None:
            progress(done, total)

    sweep(fresh.module, cut, before=before)
    return fresh


@dataclass(frozen=True)
class DenseMoments:
    """What a dense batch norm holds and what these images give it, kept channels only."""

    seen: Moments
    running_mean: Tensor
    running_var: Tensor


def dense_moments(
    dense: Program, batches: Sequence[tuple[Tensor, ...]], kept: Kept
) -> dict[str, DenseMoments]:
    """For every batch norm of the dense network, by node name."""
    found: dict[str, list[Moments]] = {}

    def before(node: fx.Node, fetch: Callable[[Any], list[Any]]) -> None:
        if node.target is BATCH_NORM:
            found.setdefault(node.name, []).append(moments(fetch(node.args[0])))

    for batch in batches:
        sweep(dense.module, [batch], before=before)
    nodes = {node.name: node for node in dense.module.graph.nodes}
    return {
        name: record
        for name, parts in found.items()
        if (record := _restrict(dense.module, nodes[name], _pool(parts), kept)) is not None
    }


def _pool(parts: Sequence[Moments]) -> Moments:
    count = sum(p.count for p in parts)
    mean = torch.stack([p.mean * (p.count / count) for p in parts]).sum(0)
    second = torch.stack([(p.var + p.mean.square()) * (p.count / count) for p in parts]).sum(0)
    return Moments(mean, (second - mean.square()).clamp_min(0.0), count)


def _restrict(
    module: fx.GraphModule, node: fx.Node, seen: Moments, kept: Kept
) -> DenseMoments | None:
    mean, var = attribute(module, node.args[3]), attribute(module, node.args[4])
    if mean is None or var is None:
        return None
    channels = kept.get(str(getattr(node.args[3], "target", "")), {}).get(0)
    rows = torch.arange(len(mean)) if channels is None else torch.as_tensor(channels)
    restricted = Moments(seen.mean[rows], seen.var[rows], seen.count)
    return DenseMoments(restricted, mean[rows].double(), var[rows].double())


def set_statistics(
    module: fx.GraphModule, node: fx.Node, seen: Moments, reference: DenseMoments | None = None
) -> None:
    """Give a batch norm the statistics `seen`, or those that reproduce the dense channel's."""
    mean, var = attribute(module, node.args[3]), attribute(module, node.args[4])
    if mean is None or var is None:
        return
    if reference is None or len(reference.running_mean) != len(mean):
        unbiased = seen.var * (seen.count / max(1, seen.count - 1))
        new_mean, new_var = seen.mean, unbiased
    else:
        eps = float(node.args[7])  # type: ignore[arg-type]
        floor = 1e-6 * (reference.running_var + eps)
        usable = (seen.var > floor) & (reference.seen.var > floor)
        ratio = torch.where(usable, seen.var / reference.seen.var.clamp_min(1e-300), 1.0)
        scaled = ratio * (reference.running_var + eps)
        new_var = (scaled - eps).clamp_min(0.0)
        offset = (reference.seen.mean - reference.running_mean) * ratio.sqrt()
        new_mean = seen.mean - offset
    with torch.no_grad():
        mean.copy_(new_mean)
        var.copy_(new_var)
