"""Integer operators as `Workload`s, the keys of latency tables, and back as operators to run.

In: an operator of an `IntegerGraph`. Out: a `Workload` with all that a kernel's instructions depend
on: shapes as they lie in memory, windows, which sides are clamped. Weights, scales and zero points
are not part of it: they change no loop (in kernels of single values, where C knows zero points and
multipliers as numbers, up to an instruction for each).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import numpy as np

from hwprune.errors import LoweringError
from hwprune.lower.spec import TensorSpec, Workload
from hwprune.quantize import graph as ops
from hwprune.quantize.arithmetic import quantize_multiplier, softmax_constants
from hwprune.quantize.graph import FLOAT32, INT8_MAX, INT8_MIN, IntegerTensor

_SEED = 0
_FLOATS = ("aten", "elementwise")  # of operators that run in float32 (lower/aten.py)
_LEFT_SHIFT = 20
_SHIFT = -7  # of the made-up layers: to the right, as usual
_SCALE, _ZERO_POINT = 0.05, 3
_INTEGERS = ("stride", "padding", "dilation", "kernel", "axis", "axes", "left_shift")
_KINDS: dict[str, type[ops.Operator]] = {
    kind.kind: kind
    for kind in (
        ops.Conv2d, ops.Linear, ops.Add, ops.Mul, ops.MaxPool, ops.AvgPool, ops.Mean, ops.Concat,
        ops.Pad, ops.Reshape, ops.Transpose, ops.Lookup, ops.Prelu, ops.Softmax, ops.Quantize,
        ops.Dequantize, ops.Requantize,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """An operator with made-up constants, what it reads, what it writes."""

    operator: ops.Operator
    inputs: tuple[IntegerTensor, ...]
    output: IntegerTensor


def workload_of(
    op: ops.Operator, inputs: Sequence[IntegerTensor], output: IntegerTensor
) -> Workload:
    """The kernel of an operator. Raises LoweringError for one that cannot be priced."""
    if isinstance(op, ops.Float):
        return op.workload
    if op.kind not in _KINDS:
        raise LoweringError(
            f"{op.kind} has no price on microcontrollers",
            where=op.where or op.name,
            hint="budgets of latency, SRAM and flash need int8 networks",
        )
    attrs: list[tuple[str, Any]] = [
        (f.name, getattr(op, f.name)) for f in fields(op) if f.name in _INTEGERS
    ]
    clamp = getattr(op, "clamp", None)
    if clamp is not None:
        attrs.append(("clamps", (clamp[0] > INT8_MIN, clamp[1] < INT8_MAX)))
    weight = getattr(op, "weight", None)
    return Workload(
        op.kind,
        tuple(TensorSpec(t.shape, t.dtype) for t in inputs),
        TensorSpec(output.shape, output.dtype),
        () if weight is None else (TensorSpec(tuple(weight.shape), "int8"),),
        tuple(sorted(attrs)),
    )


def example(workload: Workload) -> Example:
    """An operator of this workload. Raises LoweringError where there is none of its kind."""
    if workload.op in _FLOATS:
        return _float_example(workload)
    kind = _KINDS.get(workload.op)
    if kind is None:
        raise LoweringError(f"{workload.op!r} is no operator of an int8 network")
    inputs = tuple(_tensor(f"x{i}", spec) for i, spec in enumerate(workload.inputs))
    output = _tensor("y", workload.output)
    if kind in _SAME_SCALE:
        output = IntegerTensor(output.name, output.shape, output.dtype, _SCALE, _ZERO_POINT)
    values: dict[str, Any] = dict(workload.attrs)
    low, high = values.pop("clamps", (False, False))
    values["clamp"] = (output.zero_point if low else INT8_MIN, INT8_MAX - 1 if high else INT8_MAX)
    values |= _made(workload, inputs, output)
    names = {f.name for f in fields(kind)}
    known = {name: value for name, value in values.items() if name in names}
    operator = kind(
        name=workload.op, inputs=tuple(t.name for t in inputs), output="y", where="", **known
    )
    return Example(operator, inputs, output)


def _float_example(workload: Workload) -> Example:
    """An operator in float32, its parameters made up."""
    rng = np.random.default_rng(_SEED)
    inputs = tuple(
        IntegerTensor(f"x{i}", spec.shape, spec.dtype) for i, spec in enumerate(workload.inputs)
    )
    params = tuple(rng.uniform(0.0, 1.0, p.shape).astype(p.dtype) for p in workload.params)
    names = tuple(t.name for t in inputs)
    operator = ops.Float(ops.Float.kind, names, "y", "", workload=workload, params=params)
    return Example(operator, inputs, IntegerTensor("y", workload.output.shape, FLOAT32))


_SAME_SCALE = (ops.MaxPool, ops.AvgPool, ops.Pad, ops.Reshape, ops.Transpose, ops.Concat)


def _tensor(name: str, spec: TensorSpec) -> IntegerTensor:
    other = 2 if name == "y" else int(name[1:]) % 2
    zero_point = (_ZERO_POINT, -_ZERO_POINT, 2 * _ZERO_POINT)[other]
    return IntegerTensor(name, spec.shape, spec.dtype, _SCALE * (1.0 + 0.25 * other), zero_point)


def _made(
    workload: Workload, inputs: Sequence[IntegerTensor], output: IntegerTensor
) -> Mapping[str, Any]:
    """Constants of the size and the range that a network's have."""
    rng = np.random.default_rng(_SEED)
    first = inputs[0]
    if workload.params:
        shape = workload.params[0].shape
        weight = rng.integers(-INT8_MAX, INT8_MAX + 1, shape).astype(np.int8)
        return {
            "weight": weight,
            "bias": rng.integers(-1000, 1000, shape[0]).astype(np.int32),
            "multiplier": rng.integers(1 << 30, (1 << 31) - 1, shape[0]).astype(np.int32),
            "shift": np.full(shape[0], _SHIFT, np.int32),
            "groups": _groups(workload),
        }
    if workload.op == ops.Add.kind:
        return _sum(inputs, output)
    if workload.op == ops.Prelu.kind:
        slope = rng.integers(-INT8_MAX, INT8_MAX + 1, first.shape[-1]).astype(np.int8)
        pairs = [quantize_multiplier(real) for real in (0.8, 0.01)]
        return {"slope": slope} | _scales(pairs)
    if workload.op == ops.Lookup.kind:
        return {"table": rng.integers(INT8_MIN, INT8_MAX + 1, 256).astype(np.int8), "function": ""}
    if workload.op == ops.Softmax.kind:
        names = ("multiplier", "shift", "diff_min")
        return dict(zip(names, softmax_constants(first.scale), strict=True))
    if workload.op == ops.Pad.kind:
        return {"value": first.zero_point}
    real = first.scale / output.scale
    if workload.op == ops.Mean.kind:
        real /= prod(first.shape[1:3])
    elif workload.op == ops.Mul.kind:
        real *= inputs[1].scale
    multiplier, shift = quantize_multiplier(real)
    return {"multiplier": multiplier, "shift": shift}


def _groups(workload: Workload) -> int:
    """The number of groups of a convolution: input channels over those that a filter reads."""
    return workload.inputs[0].shape[-1] // workload.params[0].shape[-1]


def _sum(inputs: Sequence[IntegerTensor], output: IntegerTensor) -> Mapping[str, Any]:
    """The multipliers of a sum, as quantization makes them."""
    scales = [t.scale for t in inputs]
    widest = 2.0 * max(scales)
    reals = [s / widest for s in scales] + [widest / ((1 << _LEFT_SHIFT) * output.scale)]
    return _scales([quantize_multiplier(real) for real in reals])


def _scales(pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Several multipliers with their shifts, as an operator holds them."""
    return {"multiplier": tuple(m for m, _ in pairs), "shift": tuple(s for _, s in pairs)}
