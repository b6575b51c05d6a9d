"""`kernel_for`: the one way from a `Workload` to code, for networks and for measurements alike."""

from __future__ import annotations

import json
from functools import lru_cache

from hwprune.lower.fallback import fallback_kernel
from hwprune.lower.spec import Kernel, Workload
from hwprune.target import Target

_kernels: dict[tuple[str, str, int], Kernel] = {}


def kernel_for(workload: Workload, target: Target, threads: int) -> Kernel:
    """The scheduled kernel of a workload: by the target's rules, else by the fallback.

    The same workload, target and thread count give the same code, always. Raises LoweringError
    where neither a rule nor TVM's importer knows the operation.
    """
    key = (workload.key(), target_key(target), threads)
    if key not in _kernels:
        _kernels[key] = _make(workload, target, threads)
    return _kernels[key]


def _make(workload: Workload, target: Target, threads: int) -> Kernel:
    from hwprune.lower import cpu

    rule = getattr(cpu, "schedule", None)
    kernel: Kernel | None = None
    if rule is not None and target.kind == "cpu" and workload.op != "aten":
        kernel = rule(workload, target, threads)
    return kernel or fallback_kernel(workload, target.lanes, threads)


def target_key(target: Target) -> str:
    """What of a target the generated code depends on, as a text."""
    caches = (target.l1d_bytes, target.l2_bytes, target.l3_bytes)
    return json.dumps(
        [dict(target.tvm_target), target.isa, target.vector_bits, target.vector_registers, caches],
        sort_keys=True,
    )


@lru_cache(maxsize=8)
def _tvm_target(text: str) -> object:
    from hwprune.tvm_runtime import load_tvm

    return load_tvm().target.Target(json.loads(text))


def tvm_target(target: Target) -> object:
    """TVM's own target object."""
    return _tvm_target(json.dumps(dict(target.tvm_target), sort_keys=True))
