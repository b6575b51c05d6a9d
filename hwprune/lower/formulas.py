"""The steps of an epilogue as TIR: one table of formulas for every family of device.

In: a running value, and a device's `Maths`. Out: the value after a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hwprune.lower.spec import STEP_PARAMS, Step
from hwprune.tvm_runtime import load_tvm

load_tvm()

from tvm import tirx  # noqa: E402

Expr = Any


@dataclass(frozen=True)
class Maths:
    """How a device writes constants and what it has functions of its own for."""

    const: Callable[[float], Expr]
    exp: Callable[[Expr], Expr]
    erf: Callable[[Expr], Expr]
    clamp: Callable[[Expr, float, float], Expr]

    def sigmoid(self, x: Expr) -> Expr:
        """1 / (1 + e**-x)."""
        return self.const(1.0) / (self.const(1.0) + self.exp(self.const(0.0) - x))

    def tanh(self, x: Expr) -> Expr:
        """2 sigmoid(2x) - 1."""
        return self.const(2.0) * self.sigmoid(self.const(2.0) * x) - self.const(1.0)


def _hardsigmoid(m: Maths, x: Expr) -> Expr:
    return m.clamp(x + m.const(3.0), 0.0, 6.0) * m.const(1 / 6)


def _leaky(m: Maths, x: Expr, slope: Expr) -> Expr:
    return tirx.Select(x > m.const(0.0), x, x * slope)


def _elu(m: Maths, x: Expr, alpha: float) -> Expr:
    below = m.const(alpha) * (m.exp(tirx.min(x, m.const(0.0))) - m.const(1.0))
    return tirx.Select(x > m.const(0.0), x, below)


def _gelu(m: Maths, x: Expr) -> Expr:
    return m.const(0.5) * x * (m.const(1.0) + m.erf(x * m.const(0.7071067811865476)))


def _gelu_tanh(m: Maths, x: Expr) -> Expr:
    inner = m.const(0.7978845608028654) * (x + m.const(0.044715) * x * x * x)
    return m.const(0.5) * x * (m.const(1.0) + m.tanh(inner))


UNARY: dict[str, Callable[..., Expr]] = {
    "relu": lambda m, x: tirx.max(x, m.const(0.0)),
    "clamp": lambda m, x, low, high: m.clamp(x, low, high),
    "sigmoid": lambda m, x: m.sigmoid(x),
    "silu": lambda m, x: x * m.sigmoid(x),
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda m, x: x * _hardsigmoid(m, x),
    "leaky_relu": lambda m, x, slope: _leaky(m, x, m.const(slope)),
    "elu": _elu,
    "tanh": lambda m, x: m.tanh(x),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}
BINARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    "add": lambda x, other: x + other,
    "sub": lambda x, other: x - other,
    "mul": lambda x, other: x * other,
}


def with_params(maths: Maths, op: str, x: Expr, values: Sequence[Expr]) -> Expr:
    """A step that has per-channel parameters: `values` are the channel's, as `STEP_PARAMS` says."""
    if op == "bias":
        return x + values[0]
    if op == "affine":
        return x * values[0] + values[1]
    return _leaky(maths, x, values[0])  # prelu


def supported(steps: Sequence[Step]) -> bool:
    """Whether every step is known here."""
    return all(s.op in UNARY or s.op in BINARY or s.op in STEP_PARAMS for s in steps)
