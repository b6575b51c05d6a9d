"""Criteria that look at weights alone."""

from __future__ import annotations

import numpy as np
import torch

from hwprune.coupling import Group
from hwprune.score.criterion import Rows, criterion
from hwprune.score.evidence import Evidence, unit_rows, unit_sums


@criterion("random")
def random(evidence: Evidence, group: Group) -> Rows:
    """Uniform random scores: the baseline that every criterion has to beat."""
    return [evidence.generator.uniform(0.5, 1.5, group.width)]


@criterion("l1")
def l1(evidence: Evidence, group: Group) -> Rows:
    """L1 norm of filters (Li et al., Pruning Filters for Efficient ConvNets, 2017)."""
    return [unit_sums(t.abs(), site, group) for site, t in evidence.weights(group)]


@criterion("l2")
def l2(evidence: Evidence, group: Group) -> Rows:
    """Squared L2 norm over coupled tensors (Fang et al., DepGraph, 2023, group norm)."""
    return [unit_sums(t.double().square(), site, group) for site, t in evidence.weights(group)]


@criterion("linf")
def linf(evidence: Evidence, group: Group) -> Rows:
    """Largest magnitude of a unit's weights (L-infinity norm; as in Li et al., 2017, for L1)."""
    rows = (unit_rows(t.abs(), site, group) for site, t in evidence.weights(group))
    return [row.amax(1).cpu().numpy() for row in rows]


@criterion("bn_scale")
def bn_scale(evidence: Evidence, group: Group) -> Rows:
    """Batch-norm scales (Liu et al., Network Slimming, 2017); L2 where there is none."""
    rows = [
        unit_sums(evidence.tensors[s.parameter].abs(), s, group)
        for s in group.sites
        if s.parameter in evidence.batch_norm_weights
    ]
    return [np.mean(rows, axis=0)] if rows else l2(evidence, group)


@criterion("lamp", normalize="none")
def lamp(evidence: Evidence, group: Group) -> Rows:
    """Share of a unit's energy in that of all units at least as strong (Lee et al., LAMP, 2021).

    Structured: the energy of a unit is the squared L2 norm of its weights. The strongest unit of
    every group is worth one, so groups are compared as they are.
    """
    return [_lamp(row) for row in l2(evidence, group)]


def _lamp(energy: np.ndarray) -> np.ndarray:
    order = np.argsort(energy, kind="stable")
    left = np.cumsum(energy[order][::-1])[::-1]  # of this unit and all that are stronger
    scores = np.empty_like(energy)
    scores[order] = energy[order] / np.where(left > 0, left, 1.0)
    return scores


@criterion("fpgm")
def fpgm(evidence: Evidence, group: Group) -> Rows:
    """Sum of distances to the group's other units: near the geometric median, a unit can be
    replaced by the others (He et al., Filter Pruning via Geometric Median, 2019).
    """
    rows = (unit_rows(t, site, group) for site, t in evidence.weights(group))
    return [torch.cdist(row, row).sum(1).cpu().numpy() for row in rows]
