"""Where a calibration starts from: a core that does as its description says.

Out: a `LatencyModel` with a coefficient of one for every term, but for what runs beside the rest.
"""

from __future__ import annotations

import numpy as np

from hwprune.predict.model import LatencyModel
from hwprune.predict.work import ALGORITHMS, TERMS

BESIDE = {"load": 0.5, "partial": 0.5, "launch": 0.5}  # overlapped with multiply-adds, in part
UNKNOWN = (-1.0, 1.0)  # logarithms: nothing has been measured


def described_model() -> LatencyModel:
    """The model of a core that nobody has measured."""
    row = np.array([BESIDE.get(name, 1.0) for name in TERMS])
    return LatencyModel(dict.fromkeys(ALGORITHMS, row), UNKNOWN)
