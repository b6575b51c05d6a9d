"""Operators without a rule, in float32: the loops of TVM's importer as C.

In: a `Float` operator, whose tensors lie as torch has them. Out: a kernel like the others: what it
keeps between its loops is scratch in the arena.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from hwprune.errors import LoweringError
from hwprune.lower.fallback import plain_fallback
from hwprune.lower.mcu.emit import Argument, CKernel, constant
from hwprune.lower.mcu.memory import aligned
from hwprune.lower.mcu.printer import C_TYPES, print_kernel
from hwprune.lower.spec import Kernel, Workload
from hwprune.quantize.graph import Float, IntegerTensor
from hwprune.tvm_runtime import load_tvm

RULE = "mcu.fallback"


def fallback(op: Float, inputs: Sequence[IntegerTensor], y: IntegerTensor) -> CKernel:
    """The kernel of an operator in float32.

    Raises LoweringError naming an operator that TVM's importer does not know, or whose values have
    a type that these kernels lack.
    """
    try:
        kernel, func, scratch = _lowered(op.workload)
        constants = kernel.pack(op.params)
        arguments = (
            *(Argument(f"x{i}", t.dtype, prod(t.shape)) for i, t in enumerate(inputs)),
            *(constant(f"c{i}", array) for i, array in enumerate(constants)),
            Argument("y", y.dtype, prod(y.shape), const=False),
            *scratch,
        )
        room = sum(aligned(a.count * np.dtype(a.dtype).itemsize) for a in scratch)
        made = CKernel(RULE, func, arguments, constants, scratch_bytes=room)
        _check(made)
    except LoweringError as error:
        raise LoweringError(
            f"no float32 kernel for {op.operator} on microcontrollers: {error.what}",
            where=op.where or op.name,
            hint="take it out of the network",
        ) from error
    return made


def _check(kernel: CKernel) -> None:
    """Raise LoweringError for types and functions that C for microcontrollers lacks."""
    other = {a.dtype for a in kernel.arguments} - C_TYPES.keys()
    if other:
        raise LoweringError(f"it works on {', '.join(sorted(other))}")
    try:
        print_kernel(kernel, "kernel")
    except Exception as error:  # of TVM's generator: there is no narrower type
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise LoweringError(f"TVM writes no C for it: {last}") from error


@lru_cache(maxsize=256)
def _lowered(workload: Workload) -> tuple[Kernel, Any, tuple[Argument, ...]]:
    """The kernel, its function without blocks and with its scratch last, and what scratch that is.

    Parameters of the function: inputs, constants, output, scratch.
    """
    tvm = load_tvm()
    passes = tvm.s_tir.transform
    kernel = plain_fallback(workload)
    whole = kernel.func.body
    block = whole.block
    held = list(block.alloc_buffers)
    bare = tvm.s_tir.SBlock(
        block.iter_vars, block.reads, block.writes, block.name_hint, block.body, block.init, [],
        block.match_buffers, block.annotations,
    )  # fmt: skip
    body = tvm.s_tir.SBlockRealize(whole.iter_values, whole.predicate, bare)
    func = tvm.tirx.PrimFunc([*kernel.func.params, *held], body)
    for key, value in kernel.func.attrs.items():
        func = func.with_attr(key, value)
    stages = [
        passes.LowerInitBlock(),
        passes.PlanAndUpdateBufferAllocationLocation(),
        passes.ConvertBlocksToOpaque(),
        passes.LowerMatchBuffer(),
        passes.StmtSimplify(),
        passes.LowerOpaqueBlock(),
    ]
    module = tvm.transform.Sequential(stages)(tvm.IRModule({"kernel": func}))
    scratch = tuple(
        Argument(f"s{i}", str(b.ty.dtype), prod(map(int, b.ty.shape)), const=False)
        for i, b in enumerate(held)
    )
    return kernel, module["kernel"], scratch
