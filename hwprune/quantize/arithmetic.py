"""Fixed-point arithmetic, vectorised in NumPy: the primitives of TensorFlow Lite and CMSIS-NN.

Sources: gemmlowp `fixedpoint.h` (SaturatingRoundingDoublingHighMul, RoundingDivideByPOT,
exp_on_negative_values, one_over_one_plus_x_for_x_in_0_1), TensorFlow Lite
`kernels/internal/common.h` (MultiplyByQuantizedMultiplier without TFLITE_SINGLE_ROUNDING) and
`quantization_util.cc` (QuantizeMultiplier), CMSIS-NN `arm_nnsupportfunctions.h`
(arm_nn_requantize without CMSIS_NN_USE_SINGLE_ROUNDING). All of them agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1
SOFTMAX_LIMIT = 511  # a row of more has a sum of exponentials that 12 integer bits cannot hold


def quantize_multiplier(real: float) -> tuple[int, int]:
    """(multiplier, shift) with real = multiplier * 2^(shift - 31), multiplier in [2^30, 2^31).

    QuantizeMultiplier of TensorFlow Lite; (0, 0) for what is below 2^-32.
    """
    if real == 0.0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier, shift = 1 << 30, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def quantize_multipliers(real: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`quantize_multiplier` of every element: two int32 arrays."""
    pairs = [quantize_multiplier(float(value)) for value in real]
    multipliers, shifts = zip(*pairs, strict=True)
    return np.array(multipliers, np.int32), np.array(shifts, np.int32)


def doubling_high_mul(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    """(2ab + 2^31) >> 32, saturated: the product of Q31 numbers. int64 in (int32 values), and out.

    gemmlowp truncates after a nudge of the product's sign, CMSIS-NN floors: the same number.
    """
    product = a * np.asarray(b, np.int64)
    result: np.ndarray = np.minimum((product + (1 << 30)) >> 31, INT32_MAX)
    return result


def rounding_divide(x: np.ndarray, exponent: np.ndarray | int) -> np.ndarray:
    """x / 2^exponent to the nearest, halves away from zero. int64 in (int32 values), and out."""
    exponent = np.asarray(exponent, np.int64)
    mask = (np.int64(1) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    result: np.ndarray = (x >> exponent) + ((x & mask) > threshold)
    return result


def requantize(x: np.ndarray, multiplier: np.ndarray | int, shift: np.ndarray | int) -> np.ndarray:
    """x * multiplier * 2^(shift - 31) in int32 arithmetic, rounded twice. int64 in and out.

    Multiplier and shift broadcast against the last axis (channels).
    """
    shift = np.asarray(shift, np.int64)
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    wide = np.asarray(x, np.int64) << left
    return rounding_divide(doubling_high_mul(wide, multiplier), right)


def softmax_constants(input_scale: float) -> tuple[int, int, int]:
    """(multiplier, shift, diff_min) of an int8 softmax (PreprocessSoftmaxScaling, beta of 1).

    Differences to the maximum become Q5.26; those below `diff_min` would leave 5 integer bits.
    """
    multiplier, shift = quantize_multiplier(min(input_scale * (1 << 26), float(INT32_MAX)))
    return multiplier, shift, -math.floor(31 * (1 << 26) / (1 << shift))


def exp_on_negative(x: np.ndarray) -> np.ndarray:
    """exp of Q5.26 numbers at or below zero, as Q0.31. int64 in (int32 values), and out."""
    quarter = np.int64(1 << 24)
    within = (x & (quarter - 1)) - quarter  # in [-1/4, 0)
    a = (within << 5) + (1 << 28)  # Q0.31, about -1/8
    square = doubling_high_mul(a, a)
    cubes = rounding_divide(doubling_high_mul(square, square), 2) + doubling_high_mul(square, a)
    tail = a + rounding_divide(doubling_high_mul(cubes, 715827883) + square, 1)
    base = 1895147668  # exp(-1/8)
    result = base + doubling_high_mul(tail, base)
    left = within - x  # what is left: quarters, each power of two of them a factor
    factors = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
    for bit, factor in enumerate(factors):
        result = np.where(left & (quarter << bit), doubling_high_mul(result, factor), result)
    return np.where(x == 0, INT32_MAX, result)


def one_over_one_plus(x: np.ndarray) -> np.ndarray:
    """1 / (1 + x) of Q0.31 numbers in [0, 1], as Q0.31: three Newton-Raphson steps."""
    half = (x + INT32_MAX + 1) >> 1
    guess = 1515870810 + doubling_high_mul(half, -1010580540)  # 48/17 - 32/17 d, in Q2.29
    for _ in range(3):
        rest = (1 << 29) - doubling_high_mul(half, guess)
        guess = guess + _saturating_left(doubling_high_mul(guess, rest), 2)
    return _saturating_left(guess, 1)


def _saturating_left(x: np.ndarray, exponent: int) -> np.ndarray:
    result: np.ndarray = np.clip(x << exponent, INT32_MIN, INT32_MAX)
    return result
