"""The type in which a network is computed: float32, or a coarser one where a device has it.

In: a `Target` and the name of a type. Out: the target as it computes in that type. int8 is no such
type: a network has to be quantized for it (`int8_compile.py`).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from hwprune.errors import TargetError
from hwprune.target import BFLOAT16, FLOAT16, FLOAT32, TF32, Target

DTYPES = (FLOAT32, FLOAT16, BFLOAT16, TF32)
INT8 = "int8"
FEATURE = "asimdhp"  # Linux's name of Armv8.2's vectors of half precision
ARM = f"an Arm target whose isa.features have {FEATURE}, or "


def in_dtype(target: Target, dtype: str) -> Target:
    """The target with `dtype` for its activations, weights and multiply-adds.

    In TF32 activations and weights are float32 (`Target.storage`), and only products are coarser.

    Raises TargetError where there is no such type, or the target has no arithmetic of it.
    """
    if dtype == INT8:
        raise TargetError(
            "int8 networks are made by compile alone, from inputs to calibrate with",
            where="dtype",
            hint="hwprune compile MODEL --dtype int8 --calibrate DIRECTORY",
        )
    if dtype not in DTYPES:
        raise TargetError(
            f"unknown type {dtype!r}", where="dtype", hint=f"one of {', '.join(DTYPES)}"
        )
    if dtype == target.dtype:
        return target
    if target.gpu is not None:
        _check_tensor_cores(target, dtype)
    elif target.kind != "cpu" or dtype != FLOAT16 or FEATURE not in target.isa:
        raise TargetError(
            f"target {target.name!r} has no arithmetic in {dtype}",
            where="dtype",
            hint=f"leave it out, or choose {ARM if dtype == FLOAT16 else ''}a GPU",
        )
    return replace(target, dtype=dtype)


def in_all_types(target: Target) -> tuple[Target, ...]:
    """The target in each type that it computes in, float32 first."""
    found = []
    for dtype in DTYPES:
        with suppress(TargetError):  # it has no such type
            found.append(in_dtype(target, dtype))
    return tuple(found)


def check_int8(target: Target) -> None:
    """Raise TargetError unless there are int8 kernels for a target."""
    if target.kind == "cpu":
        return
    mcu = "microcontrollers compile to int8 by themselves: hwprune compile, or compile_mcu"
    raise TargetError(
        f"target {target.name!r} has no int8 kernels here",
        where="dtype",
        hint=mcu if target.kind == "mcu" else "choose a CPU, or another type",
    )


def _check_tensor_cores(target: Target, dtype: str) -> None:
    assert target.gpu is not None
    if dtype in target.gpu.tensor_flop_per_s:
        return
    known = ", ".join(d for d in DTYPES if d in target.gpu.tensor_flop_per_s)
    raise TargetError(
        f"{target.gpu.architecture} has no tensor cores for {dtype}",
        where=f"target {target.name!r}: dtype",
        hint=f"it has them for {known}" if known else "float32 is computed on CUDA cores",
    )
