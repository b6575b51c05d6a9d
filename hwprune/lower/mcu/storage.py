"""Which values of a network share memory: other shapes of one, and results in place of an input.

In: an `IntegerGraph` and its kernels. Out: the lifetimes that the memory plan places, and where
every tensor lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from hwprune.lower.arena import Lifetime
from hwprune.lower.mcu.emit import CKernel
from hwprune.lower.mcu.memory import Memory, aligned, plan_memory
from hwprune.quantize.graph import IntegerGraph, IntegerTensor, Reshape


@dataclass(frozen=True)
class Storage:
    """The memory plan of a network: `place[tensor]` is the value of the plan that it lies in.

    Inputs and outputs lie in memory of the caller. Scratch of call i is the value `scratch i`.
    """

    memory: Memory
    place: dict[str, str]
    in_place: tuple[str, ...]  # tensors written where an input of their operator lies


def scratch_name(call: int) -> str:
    """The name of a call's scratch memory in the plan."""
    return f"scratch {call}"


def tensor_bytes(tensor: IntegerTensor) -> int:
    """Bytes of a tensor."""
    return prod(tensor.shape) * np.dtype(tensor.dtype).itemsize


def plan_storage(graph: IntegerGraph, kernels: Sequence[CKernel | None]) -> Storage:
    """Place everything between inputs and outputs; None stands for an operator that moves nothing.

    In place where that is legal, unless the arena is smaller without.
    """
    plans = [_plan(graph, kernels, reuse) for reuse in (True, False)]
    return min(plans, key=lambda plan: plan.memory.size_bytes)


def moves_nothing(graph: IntegerGraph, index: int) -> bool:
    """Whether an operator only renames what lies in the arena."""
    op = graph.operators[index]
    apart = {*graph.inputs, *graph.outputs}
    return isinstance(op, Reshape) and op.inputs[0] not in apart and op.output not in apart


def _plan(graph: IntegerGraph, kernels: Sequence[CKernel | None], reuse: bool) -> Storage:
    live = lifetimes(graph, kernels, reuse)
    return Storage(plan_memory(live.values), live.place, live.in_place)


@dataclass(frozen=True)
class Live:
    """Values with the calls that they are alive through; the rest as in `Storage`."""

    values: list[Lifetime]
    place: dict[str, str]
    in_place: tuple[str, ...]


def lifetimes(graph: IntegerGraph, kernels: Sequence[CKernel | None], reuse: bool = True) -> Live:
    """What has to lie in the arena, and when; `reuse`: in place where that is legal."""
    apart = {*graph.inputs, *graph.outputs}
    place: dict[str, str] = {}
    last: dict[str, int] = {}
    for i, op in enumerate(graph.operators):  # by renaming alone
        if moves_nothing(graph, i):
            place[op.output] = place.get(op.inputs[0], op.inputs[0])
        for name in op.inputs:
            last[place.get(name, name)] = i
    first: dict[str, int] = {}
    written: list[str] = []
    place = {}
    for i, op in enumerate(graph.operators):
        kernel, source = kernels[i], op.inputs[0]
        home = place.get(source, source)
        if kernel is None:
            place[op.output] = home
            continue
        if op.output in apart:
            continue
        same = tensor_bytes(graph.by_name[source]) == tensor_bytes(graph.by_name[op.output])
        others = {place.get(name, name) for name in op.inputs[1:]}
        if (
            reuse
            and kernel.in_place
            and same
            and source not in apart
            and last[home] == i
            and home not in others
        ):
            place[op.output] = home
            last[home] = max(last.get(op.output, i), i)
            written.append(op.output)
            continue
        place[op.output], first[op.output] = op.output, i
    values = [
        Lifetime(name, aligned(tensor_bytes(graph.by_name[name])), start, last.get(name, start))
        for name, start in first.items()
    ]
    for i, kernel in enumerate(kernels):
        if kernel is not None and kernel.scratch_bytes:
            values.append(Lifetime(scratch_name(i), aligned(kernel.scratch_bytes), i, i))
    return Live(values, place, tuple(written))
