"""Criteria that look at activations, of unlabelled images, where layers read a group's units.

Where no layer reads them (queries and keys), the outputs of those that make them stand in.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hwprune.coupling import Group
from hwprune.recover.layers import Layer
from hwprune.score.criterion import ACTIVATIONS, COVARIANCES, RANKS, Rows, criterion
from hwprune.score.evidence import Evidence, Read


@criterion("wanda", needs=ACTIVATIONS)
def wanda(evidence: Evidence, group: Group) -> Rows:
    """Magnitude of weights times the norm of their input, |w| |x|, summed over the weights that
    read a unit (Sun et al., A Simple and Effective Pruning Approach for LLMs, 2024).
    """
    rows = []
    for read in _consumers(evidence, group):
        norm = np.sqrt(evidence.data.seen[read].square.numpy())
        if not read.output:
            norm = norm * _columns(read.layer, _weight(evidence, read)).abs().sum((1, 2)).numpy()
        rows.append(norm[read.index].sum(axis=1))
    return rows


@criterion("apoz", needs=ACTIVATIONS)
def apoz(evidence: Evidence, group: Group) -> Rows:
    """Share of activations that are not zero (Hu et al., Network Trimming, 2016, 1 - APoZ)."""
    seen = ((r, evidence.data.seen[r]) for r in evidence.data.reads.get(group.name, ()))
    return [(s.nonzero.numpy() / s.count)[r.index].mean(axis=1) for r, s in seen]


@criterion("hrank", needs=RANKS)
def hrank(evidence: Evidence, group: Group) -> Rows:
    """Mean rank of feature maps (Lin et al., HRank, 2020).

    Of values without two spatial dimensions: of the matrix positions x channels of a unit.
    """
    seen = (evidence.data.seen[r] for r in evidence.data.reads.get(group.name, ()))
    return [s.rank.numpy() / s.images for s in seen]


@criterion("reconstruction", needs=COVARIANCES)
def reconstruction(evidence: Evidence, group: Group) -> Rows:
    """Mean squared error of the consumers' outputs when the unit is gone and their bias is right.

    tr(W C W^T), C the covariance of the inputs that the unit gives (in the spirit of Luo et al.,
    ThiNet, 2017, and He et al., Channel Pruning, 2017).
    """
    rows = []
    for read in _consumers(evidence, group):
        seen = evidence.data.seen[read]
        if read.output:
            variance = seen.square / seen.count - (seen.total / seen.count).square()
            rows.append(variance.numpy()[read.index].sum(axis=1))
            continue
        columns = _columns(read.layer, _weight(evidence, read))[torch.from_numpy(read.blocks)]
        blocks = columns.transpose(1, 2).flatten(2)  # (blocks, outputs, channels x taps)
        errors = ((blocks @ seen.covariance()) * blocks).sum((1, 2))
        rows.append(errors.numpy().reshape(group.width, -1).sum(axis=1))
    return rows


def _consumers(evidence: Evidence, group: Group) -> list[Read]:
    """The reads whose layers stay when a unit goes; all, where there are no such."""
    reads = evidence.data.reads.get(group.name, ())
    return [r for r in reads if not r.passes] or list(reads)


def _weight(evidence: Evidence, read: Read) -> Tensor:
    return evidence.tensors[read.layer.weight].detach().double().cpu()


def _columns(layer: Layer, weight: Tensor) -> Tensor:
    """The weights that read each input channel: (channels, outputs that do, taps)."""
    taps = weight.reshape(layer.groups, len(weight) // layer.groups, weight.shape[1], -1)
    return taps.transpose(1, 2).flatten(0, 1)
