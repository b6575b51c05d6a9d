"""Normal equations of many small regressions, and their ridge solution toward given weights.

Everything is float64 and batched over the groups of a convolution: inputs (G, S, K), outputs
(G, S, O), coefficients (G, K, O); K includes a column of ones where there is an intercept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates, as a share of the mean squared input of the group."""


@dataclass(frozen=True)
class Equations:
    """Sums over samples: X'X (G, K, K), X'Y (G, K, O), Y'Y and Y's sum (G, O)."""

    gram: Tensor
    cross: Tensor
    square: Tensor
    total: Tensor
    samples: int
    intercept: bool

    @staticmethod
    def of(inputs: Tensor, outputs: Tensor, intercept: bool) -> Equations:
        """Accumulate inputs (G, S, K) and outputs (G, S, O) of any float dtype."""
        x, y = inputs.double(), outputs.double()
        if intercept:
            x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
        xt = x.transpose(1, 2)
        return Equations(xt @ x, xt @ y, y.square().sum(1), y.sum(1), inputs.shape[1], intercept)

    def __add__(self, other: Equations) -> Equations:
        """The equations of both sets of samples."""
        return Equations(
            self.gram + other.gram,
            self.cross + other.cross,
            self.square + other.square,
            self.total + other.total,
            self.samples + other.samples,
            self.intercept,
        )

    def error(self, coefficients: Tensor) -> float:
        """Squared error over the outputs' variance, summed over all outputs."""
        fitted = (self.gram @ coefficients - 2.0 * self.cross) * coefficients
        residual = (fitted.sum(1) + self.square).clamp_min(0.0)
        variance = self.square - self.total.square() / self.samples
        return float(residual.sum() / variance.sum().clamp_min(1e-300))


def solve(equations: Equations, current: Tensor, ridge: float) -> Tensor:
    """argmin |X w - y|^2 + ridge * mean(diag X'X) * |w - current|^2; the intercept is free."""
    if ridge == float("inf"):
        return current
    size = equations.gram.shape[1]
    weights = size - int(equations.intercept)
    diagonal = equations.gram.diagonal(dim1=1, dim2=2)
    strength = ridge * diagonal[:, :weights].mean(1).clamp_min(1e-12)
    penalty = strength[:, None].expand(-1, size).clone()
    if equations.intercept:
        penalty[:, -1] = 1e-9 * equations.samples
    system = equations.gram + torch.diag_embed(penalty)
    factor, failed = torch.linalg.cholesky_ex(system)
    if bool(failed.any()):
        return current
    return current + torch.cholesky_solve(equations.cross - equations.gram @ current, factor)


def choose(fit: Equations, held_back: Equations, current: Tensor) -> float:
    """The ridge whose solution on `fit` does best on `held_back`; inf where none helps."""
    best, best_error = float("inf"), held_back.error(current)
    for ridge in RIDGES:
        error = held_back.error(solve(fit, current, ridge))
        if error < best_error:
            best, best_error = ridge, error
    return best
