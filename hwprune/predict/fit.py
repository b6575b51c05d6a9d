"""Coefficients of the terms of a latency, fitted to measurements by robust least squares.

In: terms (rows x terms, microseconds) and measured microseconds. Out: positive coefficients. The
error that counts is that of the logarithm, so that small kernels count as much as large ones;
outliers count linearly (SciPy's `soft_l1`); a weak pull towards the prior decides where the rows
do not.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import least_squares

NOISE = 0.05  # of a logarithm: residuals beyond count linearly
PULL = 0.05  # of a logarithm of a coefficient from its prior
LEAST = 1e-4  # of the prior: a coefficient that the rows say is nothing


def fit_coefficients(terms: np.ndarray, measured_us: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """(terms,) float64 coefficients that explain the rows best.

    `prior` (terms,) is positive. Raises ValueError where shapes differ or a time is not positive.
    """
    if terms.shape != (len(measured_us), len(prior)) or not np.all(measured_us > 0):
        raise ValueError("terms, positive measurements and prior must fit")
    goal, start = np.log(measured_us), np.log(prior)

    def residuals(logs: np.ndarray) -> np.ndarray:
        errors = np.log(terms @ np.exp(logs)) - goal
        return np.concatenate([errors, PULL * (logs - start)])

    def slopes(logs: np.ndarray) -> np.ndarray:
        parts = terms * np.exp(logs)
        pull = PULL * np.eye(len(logs))
        return np.concatenate([parts / parts.sum(axis=1, keepdims=True), pull])

    bounds = (start + np.log(LEAST), start - np.log(LEAST))
    found = least_squares(
        residuals, start, slopes, bounds=bounds, loss="soft_l1", f_scale=NOISE, max_nfev=200
    )
    return np.asarray(np.exp(found.x), dtype=float)
