"""Latency of kernels without the device: what a core can do, how our code asks for it, calibrated.

In: a `Workload`, a `Target`, threads. Out: `Predicted` microseconds with an interval. The method is
described in docs/prediction.md.
"""

from __future__ import annotations

from hwprune.predict.calibration import Calibrated, find_model
from hwprune.predict.model import LatencyModel, Predicted

__all__ = ["Calibrated", "LatencyModel", "Predicted", "find_model"]
