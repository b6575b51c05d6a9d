"""How to quantize: the settings, and what is impossible among them."""

from __future__ import annotations

from dataclasses import dataclass

from hwprune.errors import HwpruneError
from hwprune.quantize.observe import METHODS, MSE


@dataclass(frozen=True)
class QuantConfig:
    """Post-training static quantization (docs/quantization.md).

    `method` finds the ranges of values: "minmax", "percentile" (`percentile` of the values, in per
    cent, are within), or "mse" (least squared error of rounding and clipping). `equalise` scales
    channels of neighbouring layers against each other first, `correct_bias` lets biases take the
    mean error of every channel. `float_fallback` runs operators without an int8 kernel in float32.
    """

    method: str = MSE
    percentile: float = 99.99
    equalise: bool = False
    correct_bias: bool = False
    float_fallback: bool = False

    def checked(self) -> QuantConfig:
        """This configuration. Raises HwpruneError, naming the setting, for an impossible one."""
        if self.method not in METHODS:
            hint = ", ".join(METHODS)
            raise HwpruneError(f"unknown method {self.method!r}", where="calibration", hint=hint)
        if not 0.0 < self.percentile <= 100.0:
            raise HwpruneError(
                f"{self.percentile!r} is impossible", where="percentile", hint="0 to 100"
            )
        return self
