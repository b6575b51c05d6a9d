"""What the terms leave, smoothed: kernels that are alike are off by about the same factor.

In: coordinates of kernels (rows x traits) and the logarithm of measured over modelled time. Out: a
`Residual` that gives the expected logarithm for any kernel and how sure that is; far from all
measured ones it is zero. A Gaussian process with an exponential kernel (Rasmussen and Williams,
Gaussian Processes for Machine Learning, 2006, algorithm 2.1); its three numbers have the largest
marginal likelihood on a small grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

LENGTHS = (2.0, 4.0, 8.0, 16.0)  # traits are logarithms to base two
SIGNALS = (0.0025, 0.01, 0.04)  # variances of a logarithm
NOISES = (0.0004, 0.0016, 0.0064)
OUTLIER = 0.4  # logarithms beyond are cut


@dataclass(frozen=True)
class Residual:
    """`traits` (rows, traits) and `weights` (rows,): expected logarithm = kernel @ weights."""

    traits: np.ndarray
    weights: np.ndarray
    length: float
    signal: float
    noise: float

    @staticmethod
    def fit(traits: np.ndarray, logs: np.ndarray) -> Residual:
        """Fit to (rows, traits) float64 and (rows,) logarithms of measured over modelled."""
        cut = np.clip(logs, -OUTLIER, OUTLIER)
        distance = _distance(traits, traits)
        best: tuple[float, Residual] | None = None
        for length, signal, noise in product(LENGTHS, SIGNALS, NOISES):
            covariance = signal * np.exp(-distance / length) + noise * np.eye(len(cut))
            factor = cho_factor(covariance, lower=True)
            weights = cho_solve(factor, cut)
            likelihood = -0.5 * cut @ weights - np.log(np.diag(factor[0])).sum()
            if best is None or likelihood > best[0]:
                best = (likelihood, Residual(traits, weights, length, signal, noise))
        assert best is not None
        return best[1]

    def at(self, traits: np.ndarray) -> np.ndarray:
        """(rows,) expected logarithms of (rows, traits)."""
        near = np.exp(-_distance(traits, self.traits) / self.length)
        return np.asarray(self.signal * near @ self.weights)

    def to_json(self) -> dict[str, Any]:
        """As a calibration file keeps it."""
        return {
            "length": self.length,
            "signal": self.signal,
            "noise": self.noise,
            "traits": [[round(float(x), 4) for x in row] for row in self.traits],
            "weights": [round(float(x), 6) for x in self.weights],
        }

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Residual:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError on malformed data."""
        traits = np.array(raw["traits"], dtype=float)
        weights = np.array(raw["weights"], dtype=float)
        numbers = [float(raw[name]) for name in ("length", "signal", "noise")]
        if traits.ndim != 2 or weights.shape != (len(traits),) or min(numbers) <= 0:
            raise ValueError("residual of the wrong shape")
        if not (np.isfinite(traits).all() and np.isfinite(weights).all()):
            raise ValueError("residual that is not finite")
        return Residual(traits, weights, *numbers)


def _distance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(rows of left, rows of right) Euclidean distances."""
    squares = ((left[:, None, :] - right[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(np.sqrt(squares))
