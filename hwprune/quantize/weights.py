"""int8 weights, int32 biases and what an accumulator can reach.

In: float weights and biases of one layer, the scheme of its input. Out: integers. `weight_scales`
is also what the simulation in float uses, so both round alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hwprune.errors import LoweringError
from hwprune.quantize.arithmetic import INT32_MAX, quantize_multipliers
from hwprune.quantize.graph import INT8_MAX, INT8_MIN
from hwprune.quantize.scheme import Params

BIAS_LIMIT = 1 << 30  # half of an accumulator: what is left is for the products


@dataclass(frozen=True, eq=False)
class IntegerWeights:
    """weight int8 (O, …), bias, multiplier and shift int32 (O,)."""

    weight: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray


def weight_scales(weight: Tensor, bias: Tensor | None, input_scale: float) -> Tensor:
    """Symmetric scale of every output channel: (O,) float32.

    The largest weight becomes 127, unless the bias would then need more than 31 bits: channels of
    next to no weight get the scale at which their bias fits.
    """
    scales = weight.detach().abs().reshape(len(weight), -1).amax(1) / INT8_MAX
    if bias is not None:
        scales = torch.maximum(scales, bias.detach().abs() / (input_scale * BIAS_LIMIT))
    return torch.where(scales > 1e-30, scales, torch.ones_like(scales))


def integer_weights(
    weight: Tensor, bias: Tensor | None, source: Params, result: Params, where: str
) -> IntegerWeights:
    """The integers of a layer. Raises LoweringError where its accumulators can overflow."""
    scales = weight_scales(weight, bias, source.scale)
    column = scales.reshape(-1, *[1] * (weight.ndim - 1))
    rounded = torch.round(weight.detach() / column).clamp(-INT8_MAX, INT8_MAX)
    integers = rounded.to(torch.int8).numpy()
    steps = scales.double().numpy() * source.scale
    values = np.zeros(len(steps)) if bias is None else bias.detach().double().numpy()
    biases = np.rint(values / steps).astype(np.int64)
    multiplier, shift = quantize_multipliers(steps / result.scale)
    check_accumulators(integers, biases, shift, source.zero_point, where)
    return IntegerWeights(integers, biases.astype(np.int32), multiplier, shift)


def accumulator_bounds(weight: np.ndarray, bias: np.ndarray, zero_point: int) -> np.ndarray:
    """The largest magnitude of any partial sum of a channel, int64 (O,), over all int8 inputs.

    In either way of summing: bias + sum((x - zero_point) w) in any order, and with the zero points
    moved into the bias, bias - zero_point sum(w) + sum(x w).
    """
    flat = weight.astype(np.int64).reshape(len(weight), -1)
    bias = bias.astype(np.int64)
    ends = np.stack([flat * (INT8_MIN - zero_point), flat * (INT8_MAX - zero_point)])
    above = np.maximum(bias, 0) + np.maximum(ends.max(0), 0).sum(1)
    below = np.maximum(-bias, 0) - np.minimum(ends.min(0), 0).sum(1)
    folded = np.abs(bias - zero_point * flat.sum(1)) + np.abs(flat).sum(1) * -INT8_MIN
    return np.maximum(np.maximum(above, below), folded)


def check_accumulators(
    weight: np.ndarray, bias: np.ndarray, shift: np.ndarray, zero_point: int, where: str
) -> None:
    """Raise LoweringError where a sum, shifted left before requantizing, may exceed 31 bits."""
    bounds = accumulator_bounds(weight, bias, zero_point)
    reached = bounds.astype(np.float64) * np.exp2(np.maximum(shift, 0))
    if reached.max(initial=0.0) > INT32_MAX:
        channel = int(reached.argmax())
        raise LoweringError(
            f"the int32 accumulator of output channel {channel} can reach {reached[channel]:.4g}, "
            f"more than {INT32_MAX} ({weight[channel].size} products)",
            where=where,
            hint="prune its inputs, split the layer, or keep it in float32",
        )
