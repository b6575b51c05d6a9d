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

from hwprune.lower.spec import PACKED, STEP_PARAMS, Attr, Call, Step, TensorSpec, Workload

EXPAND_DEPTHWISE = "expand_depthwise"
LEAST_PIXELS = 32 * 32  # of the wide plane, weighed by how many of them a pixel of the result is
_POINTWISE: tuple[tuple[str, Attr], ...] = (
    ("dilation", (1, 1)),
    ("padding", (0, 0, 0, 0)),
    ("stride", (1, 1)),
)


def join_expansions(
    calls: Sequence[Call], outputs: Iterable[str], aliases: Mapping[str, str]
) -> tuple[Call, ...]:
    """The calls in order, every expansion that only a depthwise convolution reads joined to it.

    Planes decide what is joined, never widths: a network has the same calls at any of them, and
    what is priced is what runs. Small planes stay in the cache, and are left alone.
    """
    readers = Counter(name for call in calls for name in call.args)
    readers.update([*outputs, *aliases.values()])
    wide = {call.output: call for call in calls if _expands(call) and readers[call.output] == 1}
    joined: dict[str, Call] = {}
    within: set[str] = set()
    for call in calls:
        first = wide.get(call.args[0]) if call.args else None
        if first is not None and _follows(call.workload):
            joined[call.name] = _join(first, call)
            within.add(first.name)
    return tuple(joined.get(call.name, call) for call in calls if call.name not in within)


def join(expand: Workload, depthwise: Workload) -> Workload:
    """The `expand_depthwise` workload of two convolutions, of which one reads the other."""
    steps = tuple((step.op, step.args) for step in expand.epilogue)
    return replace(
        depthwise,
        op=EXPAND_DEPTHWISE,
        inputs=(*expand.inputs, *depthwise.inputs[1:]),
        params=(*expand.params, *depthwise.params),
        attrs=tuple(sorted({**dict(depthwise.attrs), "expansion": steps}.items())),
    )


def parts(workload: Workload) -> tuple[Workload, Workload]:
    """The (expansion, depthwise convolution) of an `expand_depthwise` workload: `join` undone."""
    steps = tuple(Step(op, args) for op, args in workload.attr("expansion"))
    count = 1 + sum(STEP_PARAMS.get(step.op, 0) for step in steps)
    attrs = tuple((name, value) for name, value in workload.attrs if name != "expansion")
    source, channels = workload.inputs[0], workload.output.shape[1]
    wide = TensorSpec((source.shape[0], channels, *source.shape[2:]), source.dtype, PACKED)
    expand = Workload("conv2d", (source,), wide, workload.params[:count], _POINTWISE, steps)
    inputs, params = (wide, *workload.inputs[1:]), workload.params[count:]
    return expand, replace(workload, op="conv2d", inputs=inputs, params=params, attrs=attrs)


def _expands(call: Call) -> bool:
    """Whether a call is a dense 1x1 convolution of a packed image, with nothing else to read."""
    work = call.workload
    if work.op != "conv2d" or len(work.inputs) != 1 or work.inputs[0].layout != PACKED:
        return False
    (_, inputs, *kernel), channels = work.params[0].shape, work.inputs[0].shape[1]
    if inputs != channels or kernel != [1, 1]:
        return False
    return all(work.attr(name) == value for name, value in _POINTWISE if name != "dilation")


def _follows(work: Workload) -> bool:
    """Whether a kernel is a depthwise convolution of a plane that is large, or that it shrinks."""
    if work.op != "conv2d" or len(work.inputs) != 1:
        return False
    channels, *plane = work.inputs[0].shape[1:]
    if work.params[0].shape[:2] != (channels, 1) or work.output.shape[1] != channels:
        return False
    return prod(plane) * prod(work.attr("stride")) >= LEAST_PIXELS


def _join(expand: Call, depthwise: Call) -> Call:
    return replace(
        depthwise,
        workload=join(expand.workload, depthwise.workload),
        args=expand.args,
        params=(*expand.params, *depthwise.params),
        nodes=(*expand.nodes, *depthwise.nodes),
    )
