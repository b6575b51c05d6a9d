"""What all steps need to become operators: the network, its scheme, clamps and multipliers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, fx

from hwprune.errors import LoweringError
from hwprune.lower.functional import get_tensor, place
from hwprune.program import Program
from hwprune.quantize.arithmetic import (
    INT32_MAX,
    quantize_multiplier,
)
from hwprune.quantize.graph import INT8_MAX, INT8_MIN, Pair
from hwprune.quantize.placement import Placement
from hwprune.quantize.reference import quantize
from hwprune.quantize.scheme import Params, Scheme
from hwprune.quantize.steps import QuantStep

SPAN = INT8_MAX - INT8_MIN  # the largest |x - zero_point|


@dataclass
class Emitter:
    """A graph in the making. `columns`: stored column -> torch's, of flattened images."""

    program: Program
    scheme: Scheme
    at: Placement
    columns: dict[fx.Node, np.ndarray] = field(default_factory=dict)

    def tensor(self, node: Any) -> Tensor:
        """The parameter or constant of a node."""
        return get_tensor(self.program.module, str(node.target)).detach()

    def of(self, node: fx.Node) -> Params:
        """How the value of a node is quantized."""
        return self.scheme.of(node.name)


def clamp_of(step: QuantStep, params: Params) -> Pair:
    """The integers of the bounds (CalculateActivationRangeQuantized of TensorFlow Lite)."""
    ends = np.clip(np.array(step.bounds, np.float32), -1e30, 1e30)
    low, high = quantize(ends, params.scale, params.zero_point)
    return int(low), int(high)


def multiplier_of(real: float, reach: float, step: QuantStep) -> tuple[int, int]:
    """The multiplier and shift for values of up to `reach`, which must not leave 32 bits."""
    multiplier, shift = quantize_multiplier(real)
    if reach * 2.0 ** max(shift, 0) > INT32_MAX:
        raise LoweringError(
            f"requantizing by {real:.4g} overflows 32 bits",
            where=place(step.node),
            hint="the ranges of what it reads and makes are too different: check the calibration",
        )
    return multiplier, shift
