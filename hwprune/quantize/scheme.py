"""Scale and zero point of every value: which values share them, which have fixed ones.

In: steps and observed ranges. Out: `Scheme`. Pools, reshapes and paddings keep the scale of what
they read, and concatenations want one for all (requantized only where one is fixed), so these
values are observed together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwprune.lower.functional import packet
from hwprune.quantize.graph import INT8_MAX, INT8_MIN
from hwprune.quantize.observe import LEVELS, Range
from hwprune.quantize.steps import SAME_SCALE, QuantStep


@dataclass(frozen=True)
class Params:
    """r = scale * (q - zero_point), with a scale that is a float32 number."""

    scale: float
    zero_point: int

    @staticmethod
    def of_range(ends: Range) -> Params:
        """Asymmetric int8 over a range with 0 in it, which is exact."""
        low, high = min(ends[0], 0.0), max(ends[1], 0.0)
        scale = float(np.float32((high - low) / LEVELS))
        if scale < np.finfo(np.float32).tiny:
            return Params(1.0, 0)  # a value that is always 0
        zero = round(INT8_MIN - low / scale)
        return Params(scale, min(max(zero, INT8_MIN), INT8_MAX))


# Of functions whose results have known ends (TensorFlow Lite's int8 specification).
_FIXED = {
    "softmax": Params(1 / 256, INT8_MIN),
    "aten.sigmoid": Params(1 / 256, INT8_MIN),
    "aten.tanh": Params(1 / 128, 0),
}


@dataclass(frozen=True)
class Scheme:
    """How every value is quantized, by its node's name."""

    values: Mapping[str, Params]

    def of(self, name: str) -> Params:
        """Of the value of a node."""
        return self.values[name]


def fixed(step: QuantStep) -> Params | None:
    """The scale and zero point that a step's result must have, if there are such."""
    return _FIXED.get(step.kind if step.kind == "softmax" else packet(step.node))


def sharing(inputs: Sequence[str], steps: Sequence[QuantStep]) -> tuple[dict[str, str], Scheme]:
    """(value -> the value whose scale it has, the values whose scale is fixed)."""
    owner: dict[str, str] = {name: name for name in inputs}
    known: dict[str, Params] = {}
    for step in steps:
        name = step.result.name
        given = fixed(step) if step.kind in ("softmax", "lookup") else None
        owner[name] = owner[step.inputs[0].name] if step.kind in SAME_SCALE else name
        if given is not None:
            known[name] = given
        if step.kind == "concat":
            joined = {owner[v.name] for v in step.inputs} - set(known)
            owner = {v: name if o in joined else o for v, o in owner.items()}
    return owner, Scheme({v: known[o] for v, o in owner.items() if o in known})


def make_scheme(owner: Mapping[str, str], known: Scheme, ranges: Mapping[str, Range]) -> Scheme:
    """The scheme of all values, from the ranges by owner."""
    found = {o: Params.of_range(r) for o, r in ranges.items()}
    return Scheme({v: known.values.get(v) or found[o] for v, o in owner.items()})
