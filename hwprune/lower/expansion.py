"""Expansion and depthwise convolution of an inverted residual, as one kernel call.

The wide tensor between the two is read by nobody else, so it need not exist as a whole. In: calls
of the two convolutions. Out: one call of an `expand_depthwise` workload, which `parts` takes apart
again for all who ask what it computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

from hwprune.lower.spec import PACKED, Attr, Call, Step, TensorSpec, Workload

EXPAND_DEPTHWISE = "expand_depthwise"
LEAST_PIXELS = 28 * 28  # of the wide plane; smaller ones stay in the cache at any width
_PARAMS = {"bias": 1, "affine": 2, "prelu": 1}
_POINTWISE: tuple[tuple[str, Attr], ...] = (
    ("dilation", (1, 1)),
    ("padding", (0, 0, 0, 0)),
    ("stride", (1, 1)),
)


def join_expansions(
    calls: Sequence[Call], outputs: Iterable[str], aliases: Mapping[str, str]
) -> tuple[Call, ...]:
    """The calls in order, every expansion that only a depthwise convolution reads joined to it.

    Widths do not matter for what is joined: a network has the same calls at any of them.
    """
    readers = Counter(name for call in calls for name in call.args)
    readers.update([*outputs, *aliases.values()])
    wide = {call.output: call for call in calls if _expands(call) and readers[call.output] == 1}
    joined = {
        call.args[0]: _join(wide[call.args[0]], call)
        for call in calls
        if call.args and call.args[0] in wide and _is_depthwise(call.workload)
    }
    after = {call.args[0]: call for call in calls if call.args and call.args[0] in joined}
    replaced = {after[name].name: call for name, call in joined.items()}
    return tuple(replaced.get(call.name, call) for call in calls if call.output not in joined)


def parts(workload: Workload) -> tuple[Workload, Workload]:
    """The (expansion, depthwise convolution) of an `expand_depthwise` workload, as conv2d ones."""
    steps = tuple(Step(op, args) for op, args in workload.attr("expansion"))
    count = 1 + sum(_PARAMS.get(step.op, 0) for step in steps)
    attrs = tuple((name, value) for name, value in workload.attrs if name != "expansion")
    source, channels = workload.inputs[0], workload.output.shape[1]
    wide = TensorSpec((source.shape[0], channels, *source.shape[2:]), source.dtype, PACKED)
    expand = Workload("conv2d", (source,), wide, workload.params[:count], _POINTWISE, steps)
    rest = {"inputs": (wide, *workload.inputs[1:]), "params": workload.params[count:]}
    return expand, replace(workload, op="conv2d", attrs=attrs, **rest)


def _expands(call: Call) -> bool:
    """Whether a call is a 1x1 convolution of packed images that may lead into another kernel."""
    work = call.workload
    if work.op != "conv2d" or len(work.inputs) != 1 or work.inputs[0].layout != PACKED:
        return False
    (_, inputs, *kernel), channels = work.params[0].shape, work.inputs[0].shape[1]
    if inputs != channels or kernel != [1, 1] or prod(work.output.shape[2:]) < LEAST_PIXELS:
        return False
    return all(work.attr(name) == value for name, value in _POINTWISE if name != "dilation")


def _is_depthwise(work: Workload) -> bool:
    if work.op != "conv2d" or len(work.inputs) != 1:
        return False
    channels = work.inputs[0].shape[1]
    return work.params[0].shape[:2] == (channels, 1) and channels > 1


def _join(expand: Call, depthwise: Call) -> Call:
    first, second = expand.workload, depthwise.workload
    steps = tuple((step.op, step.args) for step in first.epilogue)
    workload = replace(
        second,
        op=EXPAND_DEPTHWISE,
        inputs=first.inputs,
        params=(*first.params, *second.params),
        attrs=tuple(sorted({**dict(second.attrs), "expansion": steps}.items())),
    )
    return replace(
        depthwise,
        workload=workload,
        args=expand.args,
        params=(*expand.params, *depthwise.params),
        nodes=(*expand.nodes, *depthwise.nodes),
    )
