"""Fixed-point primitives against their definitions in plain Python integers, and against floats."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hwprune.quantize.arithmetic import (
    INT32_MAX,
    exp_on_negative,
    one_over_one_plus,
    quantize_multiplier,
    quantize_multipliers,
    requantize,
    rounding_divide,
    softmax_constants,
)


def truncating(a: int, b: int) -> int:
    """C's division."""
    return abs(a) // b * (1 if a >= 0 else -1)


def multiply_by_quantized_multiplier(x: int, multiplier: int, shift: int) -> int:
    """As gemmlowp writes it: a nudge with the product's sign, then C's division; then by 2^n."""
    product = (x << max(shift, 0)) * multiplier
    nudge = (1 << 30) if product >= 0 else 1 - (1 << 30)
    high = truncating(product + nudge, 1 << 31)
    exponent = max(-shift, 0)
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + (1 if high < 0 else 0)
    return (high >> exponent) + (1 if (high & mask) > threshold else 0)


def test_requantize_is_multiply_by_quantized_multiplier():
    rng = np.random.default_rng(0)
    x = rng.integers(-(1 << 24), 1 << 24, 3000) >> rng.integers(0, 20, 3000)
    multiplier = rng.integers(1 << 30, 1 << 31, 3000)
    shift = rng.integers(-31, 7, 3000)
    rows = np.stack([x, multiplier, shift], 1).tolist()
    wanted = [multiply_by_quantized_multiplier(*row) for row in rows]
    assert requantize(x, multiplier, shift).tolist() == wanted
    real = x * (multiplier / 2.0**31) * np.exp2(shift)
    assert np.abs(requantize(x, multiplier, shift) - real).max() <= 1.0


@pytest.mark.parametrize(
    ("x", "multiplier", "shift", "wanted"),
    [
        (3, 1 << 30, 0, 2),  # 1.5: up
        (-3, 1 << 30, 0, -1),  # -1.5: up, too, in the product
        (-3, 1 << 30, -1, -1),  # then -1 / 2: away from zero
        (1, 1 << 30, 1, 1),
        (100, 0, 0, 0),
    ],
)
def test_halves_go_where_the_kernels_send_them(x, multiplier, shift, wanted):
    assert requantize(np.array([x]), multiplier, shift).tolist() == [wanted]


def test_rounding_divide_sends_halves_away_from_zero():
    x = np.array([-6, -5, -2, 2, 5, 6, 7])
    assert rounding_divide(x, 2).tolist() == [-2, -1, -1, 1, 1, 2, 2]


def test_multipliers_hold_31_bits():
    reals = np.exp(np.random.default_rng(1).uniform(-20, 3, 500))
    multipliers, shifts = quantize_multipliers(reals)
    assert ((multipliers >= 1 << 30) & (multipliers.astype(np.int64) < 1 << 31)).all()
    back = multipliers * np.exp2(shifts - 31.0)
    assert np.abs(back / reals - 1).max() <= 2.0**-31
    assert quantize_multiplier(1.0 - 2.0**-40) == (1 << 30, 1)  # rounds up to a power of two
    assert quantize_multiplier(0.0) == quantize_multiplier(2.0**-40) == (0, 0)


def test_exponential_and_reciprocal():
    x = -np.concatenate([np.arange(50), np.geomspace(50, 2.0**31 - 1, 2000).astype(np.int64)])
    found = exp_on_negative(x) / 2.0**31
    assert np.abs(found - np.exp(x / 2.0**26)).max() < 3e-7
    assert found[0] == INT32_MAX / 2.0**31
    y = np.linspace(0, INT32_MAX, 2000).astype(np.int64)
    assert np.abs(one_over_one_plus(y) / 2.0**31 - 1 / (1 + y / 2.0**31)).max() < 4e-9


@pytest.mark.parametrize("scale", [1e-3, 0.02, 0.5, 3.0])
def test_softmax_constants_keep_five_integer_bits(scale):
    multiplier, shift, diff_min = softmax_constants(scale)
    assert multiplier * 2.0 ** (shift - 31) == pytest.approx(scale * 2**26, rel=1e-9)
    assert -diff_min * 2**shift <= 31 * 2**26 < (-diff_min + 1) * 2**shift
    assert math.exp(diff_min * scale) < 2e-7 or -diff_min >= 255
