"""Schedule rules for CPUs with vector units: one rule per pattern of workload.

In: a `Workload`, a `Target`, a thread count. Out: the `Kernel` of the first rule that takes it.
"""

from __future__ import annotations

from hwprune.lower.cpu import (
    attention,
    cast,
    conv,
    depthwise,
    emit,
    expand_depthwise,
    linear,
    matmul,
    move,
    norm,
    permute,
    pixels,
    pool,
    rearrange,
    softmax,
    winograd,
)
from hwprune.lower.cpu.emit import Context, is_float
from hwprune.lower.spec import Kernel, Workload
from hwprune.target import Target

RULES = (
    cast.schedule,
    depthwise.schedule,
    expand_depthwise.schedule,
    winograd.schedule,
    conv.schedule,
    pixels.schedule,
    linear.schedule,
    matmul.schedule,
    attention.schedule,
    softmax.schedule,
    norm.schedule,
    pool.schedule,
    permute.schedule,
    rearrange.schedule,
    move.schedule,
)


def schedule(workload: Workload, target: Target, threads: int) -> Kernel | None:
    """The kernel of a workload by the first rule that matches; None if none does."""
    tensors = (*workload.inputs, *workload.params, workload.output)
    if workload.op == "aten" or not all(map(is_float, tensors)):
        return None
    context = Context.of(target, threads)
    with emit.computing(workload.output.dtype):
        for rule in RULES:
            kernel = rule(workload, context)
            if kernel is not None:
                return kernel
    return None
