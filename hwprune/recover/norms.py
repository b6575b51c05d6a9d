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
from hwprune.progress import Advance
from hwprune.recover.sweep import as_batches, attribute, sweep

Kept = Mapping[str, Mapping[int, np.ndarray]]
BATCH_NORM = torch.ops.aten.batch_norm.default


@dataclass(frozen=True)
class Moments:
    """Mean and biased variance per channel, float64, and how many values each is of."""

    mean: Tensor
    var: Tensor
    count: int


def moments(values: Sequence[Tensor], most: int | None = None) -> Moments:
    """Over all batches together, all dimensions but 1; of about `most` values per channel."""
    total = sum(v.numel() // v.shape[1] for v in values)
    if most is not None and total >= 2 * most and values[0].ndim > 2:
        step = max(1, round((total / most) ** (1 / (values[0].ndim - 2))))
        grid = (slice(None), slice(None), *(slice(None, None, step),) * (values[0].ndim - 2))
        values = [value[grid] for value in values]
    return pool([_moments(value) for value in values])


def _moments(value: Tensor) -> Moments:
    dims = [d for d in range(value.ndim) if d != 1]
    var, mean = torch.var_mean(value, dims, correction=0)
    return Moments(mean.double(), var.double(), value.numel() // value.shape[1])


def pool(parts: Sequence[Moments]) -> Moments:
    """The moments of all the values that the parts are of."""
    count = sum(p.count for p in parts)
    mean = torch.stack([p.mean * (p.count / count) for p in parts]).sum(0)
    spread = [(p.var + (p.mean - mean).square()) * (p.count / count) for p in parts]
    return Moments(mean, torch.stack(spread).sum(0), count)


def reestimate_norms(
    program: Program,
    batches: Iterable[Tensor | Sequence[Tensor]],
    *,
    dense: Program | None = None,
    kept: Kept | None = None,
    progress: Advance | None = None,
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
    reference: dict[str, DenseMoments] = {}
    if dense is not None:
        recorder = MomentRecorder(dense, kept or {})
        for batch in cut:
            sweep(dense.module, [batch], before=recorder.before)
        reference = recorder.references()
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


class MomentRecorder:
    """Collects the moments of what reaches every batch norm while the dense network is swept.

    `most` bounds the values per channel and sweep that are looked at.
    """

    def __init__(self, dense: Program, kept: Kept, most: int | None = None) -> None:
        """For this network; `kept` restricts what `references` returns."""
        self.most = most
        self.dense, self.kept = dense, kept
        self.parts: dict[str, list[Moments]] = {}

    def before(self, node: fx.Node, fetch: Callable[[Any], list[Any]]) -> None:
        """The hook for `sweep`."""
        if node.target is BATCH_NORM:
            self.parts.setdefault(node.name, []).append(moments(fetch(node.args[0]), self.most))

    def references(self) -> dict[str, DenseMoments]:
        """For every batch norm with running statistics, by node name."""
        nodes = {node.name: node for node in self.dense.module.graph.nodes}
        return {
            name: record
            for name, parts in self.parts.items()
            if (record := _restrict(self.dense.module, nodes[name], pool(parts), self.kept))
        }


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
