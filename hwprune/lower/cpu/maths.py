"""Exponentials and error functions of CPU kernels, written so that they vectorise.

LLVM has no vector code for the C library's; these are sums and products, in `emit.real()`.
"""

from __future__ import annotations

import numpy as np

from hwprune.lower.cpu.emit import Expr, const, real, tirx
from hwprune.lower.formulas import Maths
from hwprune.target import FLOAT16, FLOAT32

LARGEST = {t: float(np.finfo(t).max) for t in (FLOAT32, FLOAT16)}  # finite

# (exp(x) - 1 - x) / x**2 near 0 (Cephes expf).
EXP = (0.5, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4)

# erf(x) / x as a quotient, least of the largest errors up to the limit, beyond which erf is 1.
ERF_LIMIT = 3.8
ERF_OVER = (
    1.1283790749558078,
    0.18811557638749393,
    0.05254726067368878,
    0.00369358735738605,
    0.00028799889819960955,
    2.1321376985170637e-06,
)
ERF_UNDER = (
    1.0,
    0.5000453453763044,
    0.11325464802856977,
    0.014822876325576249,
    0.0011537388558409305,
    3.909788322977225e-05,
)


def clamp(x: Expr, low: float, high: float) -> Expr:
    """min(max(x, low), high); bounds that no finite value of `real()` reaches cost nothing."""
    end = LARGEST[real()]
    if low >= -end:
        x = tirx.max(x, const(low))
    return tirx.min(x, const(high)) if high <= end else x


def exp(x: Expr) -> Expr:
    """e**x by 2**n times a polynomial (Cephes expf), so that it vectorises; relative error 2e-7."""
    x = clamp(x, -87.3, 88.0)
    n = tirx.floor(x * const(1.44269504088896341) + const(0.5))
    r = x - n * const(0.693359375) - n * const(-2.12194440e-4)
    p = _polynomial(r, EXP) * r * r + r + const(1.0)
    exponent = tirx.Cast("int32", n) + tirx.const(127, "int32")
    return p * tirx.reinterpret("float32", tirx.shift_left(exponent, tirx.const(23, "int32")))


def erf(x: Expr) -> Expr:
    """Error function: a quotient of polynomials of x**2, fitted to it; absolute error 4e-7."""
    x = clamp(x, -ERF_LIMIT, ERF_LIMIT)
    t = x * x
    return x * _polynomial(t, ERF_OVER) / _polynomial(t, ERF_UNDER)


def _polynomial(x: Expr, coefficients: tuple[float, ...]) -> Expr:
    """The sum of c[i] * x**i."""
    value = const(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + const(c)
    return value


MATHS = Maths(const, exp, erf, clamp)
