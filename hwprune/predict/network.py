"""From kernels to a network: what tuning alone does not show, fitted to a few end-to-end runs.

In: for every network the sum of its kernels, what else takes time, and its measured latency. Out:
`NetworkModel`. Kernels that were timed over and over have their operands near; in a network the
weights of every layer come from memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from hwprune.predict.fit import fit_coefficients

LAUNCH_US = 100.0  # between two kernels of a graph executor
PRIOR = (1.2, 1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class NetworkTerms:
    """Microseconds of one network."""

    kernels: float
    weights: float  # of convolutions, from memory, at the described bandwidth
    linear: float  # of linear layers: read in one go
    values: float  # outputs of all kernels, to memory, likewise
    launches: float  # at LAUNCH_US


@dataclass(frozen=True)
class NetworkModel:
    """A coefficient for each of `NetworkTerms`; a network is their sum."""

    kernels: float
    weights: float
    linear: float
    values: float
    launches: float

    @staticmethod
    def fit(terms: Sequence[NetworkTerms], measured_us: Sequence[float]) -> NetworkModel:
        """Robust least squares on relative errors. Raises ValueError without networks."""
        if not terms:
            raise ValueError("no networks to calibrate on")
        found = fit_coefficients(
            np.array([astuple(t) for t in terms]), np.array(measured_us), np.array(PRIOR)
        )
        return NetworkModel(*map(float, found))

    def us(self, terms: NetworkTerms) -> float:
        """The latency of a network."""
        return float(np.dot(astuple(self), astuple(terms)))
