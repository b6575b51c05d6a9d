"""What criteria look at: weights, and what data showed of every place that reads a group's units.

Everything here is small: statistics per unit or channel, never activations. `gather` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwprune.coupling import Group, Site
from hwprune.recover.layers import Layer

Batch = tuple[Sequence[Tensor], Any]  # inputs, labels
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Read:
    """A value that holds units of a group, where a layer reads it (or writes it: `output`).

    `index` is (width, k): each unit's positions along dimension `dim` of the value. `passes` says
    that a grouped layer gives these units on to its outputs: they go with them.
    """

    layer: Layer
    index: np.ndarray
    dim: int
    output: bool = False
    passes: bool = False

    @property
    def blocks(self) -> np.ndarray:
        """The channels that a layer sums together, unit by unit: (blocks, channels of a block)."""
        return self.index if self.layer.groups == 1 else self.index.reshape(-1, 1)


@dataclass
class Seen:
    """What data showed of a read; sums over images and positions, float64.

    `total`, `square`, `nonzero` are per channel of the value and of `count` values each; `rank` is
    per unit and of `images`; `patch` (blocks, n) and `outer` (blocks, n, n) are the first and
    second moments of `patches` patches, n = channels of a block x taps.
    """

    count: int = 0
    total: Any = 0.0
    square: Any = 0.0
    nonzero: Any = 0.0
    images: int = 0
    rank: Any = 0.0
    patches: int = 0
    patch: Any = 0.0
    outer: Any = 0.0

    def covariance(self) -> Tensor:
        """Of the patches, (blocks, n, n): a constant part of an input is its consumer's bias."""
        mean = self.patch / self.patches
        found: Tensor = self.outer / self.patches - mean[:, :, None] * mean[:, None, :]
        return found


@dataclass
class GradientSums:
    """Of gradient x weight over the weights of a unit: sums over batches, (width,) float64."""

    square_of_sum: Any = 0.0
    sum_of_absolutes: Any = 0.0
    sum_of_squares: Any = 0.0


@dataclass
class Gathered:
    """What data showed: by read, by (group, site), by group, and by branch.

    `fisher` sums over `batches` the squared derivative with respect to a factor on each unit.
    `branches` is the mean square of f(x), as a share of that of x + f(x).
    """

    reads: Mapping[str, tuple[Read, ...]] = field(default_factory=dict)
    seen: dict[Read, Seen] = field(default_factory=dict)
    gradients: dict[tuple[str, Site], GradientSums] = field(default_factory=dict)
    fisher: dict[str, np.ndarray] = field(default_factory=dict)
    branches: dict[str, float] = field(default_factory=dict)
    batches: int = 0


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at: tensors by name, what data showed, a generator."""

    tensors: Mapping[str, Tensor]
    batch_norm_weights: frozenset[str]
    generator: np.random.Generator
    data: Gathered

    def weights(self, group: Group) -> list[tuple[Site, Tensor]]:
        """The group's sites on tensors of two or more dimensions."""
        listed = ((site, self.tensors[site.parameter]) for site in group.sites)
        return [(s, t) for s, t in listed if t.ndim > 1 and t.is_floating_point()]


def unit_sums(values: Tensor, site: Site, group: Group) -> np.ndarray:
    """Sum over everything but the site's axis, then over the indices of each unit: (width,)."""
    other = [d for d in range(values.ndim) if d != site.dim]
    per_index = values.double().sum(dim=other) if other else values.double()
    return np.asarray(per_index.cpu().numpy())[group.index[site]].sum(axis=1)


def unit_rows(tensor: Tensor, site: Site, group: Group) -> Tensor:
    """The weights of each unit on one site: (width, weights), float64."""
    rows = tensor.double().movedim(site.dim, 0).flatten(1)
    return rows[torch.from_numpy(group.index[site])].flatten(1)
