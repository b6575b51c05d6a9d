"""`kernel_for`: the one way from a `Workload` to code, for networks and for measurements alike."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache

import numpy as np

from hwprune.errors import LoweringError
from hwprune.lower.fallback import fallback_kernel, gpu_fallback
from hwprune.lower.spec import Kernel, Workload
from hwprune.target import FLOAT16, Target

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
    if target.kind == "cuda":
        from hwprune.lower import cuda

        return cuda.schedule(workload, target) or gpu_fallback(workload)
    from hwprune.lower import cpu

    rule = getattr(cpu, "schedule", None)
    kernel: Kernel | None = None
    if rule is not None and target.kind == "cpu" and workload.op != "aten":
        kernel = rule(workload, target, threads)
    if workload.output.dtype == FLOAT16:
        return _rounded(workload, kernel)
    return kernel or fallback_kernel(workload, target.lanes, threads)


def _rounded(workload: Workload, kernel: Kernel | None) -> Kernel:
    """The kernel with its weights in float16."""
    if kernel is None:
        raise LoweringError(
            f"no rule computes this {workload.op} in float16", hint="compile it in float32"
        )
    inner = kernel.pack
    return replace(kernel, pack=lambda params: tuple(a.astype(np.float16) for a in inner(params)))


def target_key(target: Target) -> str:
    """What of a target the generated code depends on, as a text."""
    caches = (target.l1d_bytes, target.l2_bytes, target.l3_bytes)
    facts = [dict(target.tvm_target), target.isa, target.vector_bits, target.vector_registers]
    if target.gpu is not None:
        return json.dumps([*facts, target.gpu.sms, target.gpu.shared_bytes_per_block])
    return json.dumps([*facts, caches, target.dtype], sort_keys=True)


@lru_cache(maxsize=8)
def _tvm_target(text: str) -> object:
    from hwprune.tvm_runtime import load_tvm

    return load_tvm().target.Target(json.loads(text))


def tvm_target(target: Target) -> object:
    """TVM's own target object; a GPU's says with it what the host's code is for."""
    facts = dict(target.tvm_target)
    if target.kind == "cuda":
        host = {k: facts.pop(k) for k in ("mtriple", "mcpu") if k in facts}
        facts["host"] = {"kind": "llvm", **host}
    return _tvm_target(json.dumps(facts, sort_keys=True))
