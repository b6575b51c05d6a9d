"""A workload at other shapes: re-derives the attributes that hold sizes.

Shapes alone say what most kernels do; slices and ATen calls also carry sizes in their arguments.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hwprune.errors import LoweringError
from hwprune.lower.spec import Workload

Shape = tuple[int, ...]

NORM = "aten.group_norm.default"
# ATen operators whose second argument is the shape of the result.
SIZED = frozenset(
    {
        "aten.view.default",
        "aten.reshape.default",
        "aten._unsafe_view.default",
        "aten.expand.default",
        "aten.view_copy.default",
    }
)


def reshape_workload(
    workload: Workload, inputs: Sequence[Shape], output: Shape, params: Sequence[Shape]
) -> Workload:
    """The same kernel at other logical shapes.

    Raises LoweringError where the arguments of an ATen call cannot be re-derived.
    """
    shaped = workload.with_shapes(inputs, output, params)
    if shaped == workload:
        return workload
    if workload.op == "slice":
        return _slice(workload, shaped)
    if workload.op == "aten":
        return _aten(workload, shaped)
    return shaped


def _with(workload: Workload, **attrs: Any) -> Workload:
    changed = tuple((name, attrs.get(name, value)) for name, value in workload.attrs)
    return replace(workload, attrs=changed)


def _slice(workload: Workload, shaped: Workload) -> Workload:
    """A slice that keeps its place in proportion and has the size of its output."""
    axis, start, step = (workload.attr(name) for name in ("axis", "start", "step"))
    size, kept = shaped.inputs[0].shape[axis], shaped.output.shape[axis]
    if size == workload.inputs[0].shape[axis] and kept == workload.output.shape[axis]:
        return shaped
    span = (kept - 1) * step + 1
    if span > size:
        raise LoweringError(f"a slice of {kept} by {step} does not fit {size}")
    begin = min(round(start * size / workload.inputs[0].shape[axis]), size - span)
    return _with(shaped, start=begin, stop=begin + span)


def _aten(workload: Workload, shaped: Workload) -> Workload:
    call = json.loads(workload.attr("args"))
    if workload.attr("target") == NORM:
        before, after = (work.inputs[0].shape[1] for work in (workload, shaped))
        call["args"][1] = _norm_groups(call["args"][1], before, after)
        return _with(shaped, args=json.dumps(call, sort_keys=True))
    if workload.attr("target") in SIZED:
        call["args"][1] = list(shaped.output.shape)
        return _with(shaped, args=json.dumps(call, sort_keys=True))
    changed = {
        old
        for before, after in zip(_shapes(workload), _shapes(shaped), strict=True)
        for old, new in zip(before, after, strict=True)
        if old != new
    }
    if changed & set(_numbers(call)):
        raise LoweringError(f"cannot re-derive the sizes in {workload.attr('target')}")
    return shaped


def _norm_groups(groups: int, before: int, after: int) -> int:
    """How many norm groups fewer channels have: as many where they fit, else whole ones less.

    What the network really has may be the other of the two; a kernel's time is the same.
    """
    if after % groups == 0:
        return groups
    if after % (before // groups):
        raise LoweringError(f"{after} channels are no norm groups of {before // groups}")
    return after // (before // groups)


def _shapes(workload: Workload) -> list[Shape]:
    return [t.shape for t in (*workload.inputs, workload.output, *workload.params)]


def _numbers(value: Any) -> list[int]:
    """Every whole number among JSON arguments, except tensor references."""
    if isinstance(value, dict):
        if len(value) == 1 and set(value) <= {"input", "param"}:
            return []
        return [n for v in value.values() for n in _numbers(v)]
    if isinstance(value, list):
        return [n for v in value for n in _numbers(v)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []
