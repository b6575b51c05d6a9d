"""Schedule rules for NVIDIA GPUs: one rule per pattern of workload, channels last.

In: a `Workload`, a `Target` of kind "cuda". Out: the `Kernel` of the first rule that takes it.
"""

from __future__ import annotations

from hwprune.lower.cuda import attention, conv, depthwise, linear, pointwise, pool, reduce
from hwprune.lower.cuda.context import Context
from hwprune.lower.cuda.emit import is_ours
from hwprune.lower.spec import Kernel, Workload
from hwprune.target import Target

RULES = (
    depthwise.schedule,
    conv.schedule,
    linear.schedule,
    attention.schedule,
    reduce.schedule,
    pool.schedule,
    pointwise.schedule,
)


def schedule(workload: Workload, target: Target) -> Kernel | None:
    """The kernel of a workload by the first rule that matches; None if none does."""
    tensors = (*workload.inputs, *workload.params, workload.output)
    if workload.op == "aten" or not all(map(is_ours, tensors)):
        return None
    context = Context.of(target)
    for rule in RULES:
        kernel = rule(workload, context)
        if kernel is not None:
            return kernel
    return None
