"""What a layer reads of channels that are gone, restored from those that stay.

In: the values that a layer reads, whole. Out: a function that puts into such a value, for the
channels that are gone, their linear regression on the others, or their mean where there is none.
Least squares in the layer that reads them (`recover.reconstruct`) does no worse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

RIDGE = 1e-3  # of the channels' mean variance; more where there are few values for each channel
ROWS = 8192  # of a batch: positions beyond these say little that is new
WIDEST = 4096  # channels; with more of them (a flattened map) the covariance alone is gigabytes
Restore = Callable[[Tensor], Tensor]


@dataclass
class Moments:
    """Sums over positions of the channels along `dim` of a value, float64; `outer` if `joint`."""

    dim: int
    joint: bool
    count: int = 0
    total: Any = 0.0
    outer: Any = 0.0

    def add(self, value: Tensor) -> None:
        """Add what a batch shows."""
        rows = value.movedim(self.dim, -1).flatten(0, -2)
        self.joint = self.joint and rows.shape[1] <= WIDEST
        if self.joint:
            rows = rows[:: -(-len(rows) // ROWS)].double()
            self.outer = self.outer + rows.T @ rows
        self.count += len(rows)
        self.total = self.total + rows.double().sum(0)

    def restore(self, gone: Tensor) -> Restore:
        """What puts into a value what is known of the channels `gone`, (n,) int64."""
        mean = self.total / self.count
        if not self.joint or len(gone) in (0, len(mean)):
            return partial(_constant, self.dim, gone, mean[gone])
        kept = torch.ones(len(mean), dtype=torch.bool).index_fill_(0, gone, False).nonzero()[:, 0]
        covariance = self.outer / self.count - mean[:, None] * mean
        matrix = covariance[kept][:, kept]
        ridge = (RIDGE + len(kept) / self.count) * covariance.diagonal().mean()
        matrix.diagonal().add_(ridge + 1e-12)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            return partial(_constant, self.dim, gone, mean[gone])
        weight = torch.cholesky_solve(covariance[kept][:, gone], factor)
        bias = mean[gone] - mean[kept] @ weight
        return partial(_regressed, self.dim, gone, kept, weight, bias)


def _constant(dim: int, gone: Tensor, mean: Tensor, value: Tensor) -> Tensor:
    """A value whose channels `gone` are constant along all else."""
    shape = [-1 if d == dim else 1 for d in range(value.ndim)]
    size = [len(gone) if d == dim else n for d, n in enumerate(value.shape)]
    return value.index_copy(dim, gone, mean.to(value).reshape(shape).expand(size))


def _regressed(
    dim: int, gone: Tensor, kept: Tensor, weight: Tensor, bias: Tensor, value: Tensor
) -> Tensor:
    """A value whose channels `gone` are what those `kept` say of them."""
    rows = value.movedim(dim, -1)[..., kept]
    restored = rows @ weight.to(value) + bias.to(value)
    return value.index_copy(dim, gone, restored.movedim(-1, dim))
