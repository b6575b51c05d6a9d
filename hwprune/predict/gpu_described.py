"""Where a calibration of a GPU starts from, and what stands where nothing has been measured.

Out: a `LatencyModel` of a GPU that reaches a usual share of its data sheet's rates: PyTorch takes
788 of 989 TFLOP/s from an H200 in a large bfloat16 product and 4.3 of 4.8 TB/s in a copy, a factor
of 1.25 and 1.12; pipes beside the busiest are hidden but for a tenth.
"""

from __future__ import annotations

import numpy as np

from hwprune.predict.generic import UNKNOWN
from hwprune.predict.gpu_work import GPU_ALGORITHMS, GPU_TERMS
from hwprune.predict.model import LatencyModel

BUSY, BESIDE = 1.1, 0.1
OTHERS = {"busy": BUSY, "steps": 1.0, "launch": 1.0}


def described_gpu_model() -> LatencyModel:
    """The model of a GPU that nobody has measured."""
    row = np.array([OTHERS.get(name, BESIDE) for name in GPU_TERMS])
    return LatencyModel(dict.fromkeys(GPU_ALGORITHMS, row), UNKNOWN)
