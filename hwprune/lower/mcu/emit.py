"""Writing TIR for C: flat buffers, named arguments, calls of the functions in hwprune_kernels.h.

In: TVM's builder. Out: statements of the function under construction. Buffers are flat: their
extents are the bounds of what a kernel may touch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprune.tvm_runtime import load_tvm

load_tvm()

from tvm import tirx  # noqa: E402
from tvm.script.ir_builder import IRBuilder  # noqa: E402
from tvm.tirx.script.builder import ir as T  # noqa: E402, N812

Buffer = Any
Expr = Any

# Keep accumulators in C's local arrays, which GCC turns into registers.
ON_STACK = {"disable_lower_builtin": True}


@dataclass(frozen=True)
class Argument:
    """A pointer that a kernel takes: `count` elements; constants and inputs are only read."""

    name: str
    dtype: str
    count: int
    const: bool = True


@dataclass(frozen=True, eq=False)
class CKernel:
    """A kernel and what it needs beside its inputs and its output.

    Arguments of `func`: inputs, constants, scratch if any, output. `in_place`: the output may lie
    where the first input does. `macs`: multiply-accumulates of one call, which read `weight_reads`
    bytes of weights.
    """

    rule: str
    func: Any
    arguments: tuple[Argument, ...]
    constants: tuple[np.ndarray, ...] = ()
    scratch_bytes: int = 0
    in_place: bool = False
    macs: int = 0
    weight_reads: int = 0


def build_function(arguments: Sequence[Argument], body: Callable[..., None]) -> Any:
    """A PrimFunc over flat buffers, given to the body by name."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("kernel")
            buffers = {a.name: T.arg(a.name, T.buffer((a.count,), a.dtype)) for a in arguments}
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
            body(**buffers)
    return builder.get()


def constant(name: str, array: np.ndarray) -> Argument:
    """The argument for an array of constants."""
    return Argument(name, str(array.dtype), int(array.size))


def call(name: str, *args: Expr) -> Expr:
    """An int32 result of a function of the header."""
    return T.call_extern("int32", f"hwprune_{name}", *args)


def call_float(name: str, *args: Expr) -> Expr:
    """A float32 result of a function of hwprune_float.h."""
    return T.call_extern("float32", f"hwprune_{name}", *args)


def run(name: str, *args: Expr) -> None:
    """A function of the header that returns nothing."""
    T.evaluate(T.call_extern("void", f"hwprune_{name}", *args))


def at(buffer: Buffer, index: Expr) -> Expr:
    """The address of an element."""
    return T.address_of(buffer[index])


def accumulators(count: int, dtype: str = "int32") -> Buffer:
    """Local variables; their indices must be plain numbers."""
    return T.alloc_buffer((count,), dtype, scope="global", annotations=ON_STACK)


def bind(value: Expr) -> Expr:
    """A C variable that holds the value."""
    return T.bind(value) if not isinstance(value, int) else value


def i32(value: Expr) -> Expr:
    """The value as int32."""
    return tirx.const(value, "int32") if isinstance(value, int) else tirx.Cast("int32", value)


def i8(value: Expr) -> Expr:
    """The value as int8."""
    return tirx.const(value, "int8") if isinstance(value, int) else tirx.Cast("int8", value)


def f32(value: float) -> Expr:
    """The number as float32."""
    return tirx.const(float(value), "float32")


class loop:  # noqa: N801 - reads as the statement it makes
    """`with loop(n) as i`: a loop; none at all for n == 1."""

    def __init__(self, extent: Expr) -> None:
        single = isinstance(extent, int) and extent == 1
        self._frame = None if single else T.serial(extent)

    def __enter__(self) -> Expr:
        return 0 if self._frame is None else self._frame.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._frame is not None:
            self._frame.__exit__(*error)
