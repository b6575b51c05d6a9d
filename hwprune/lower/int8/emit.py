"""Writing TIR for integer kernels on CPUs: typed buffers, vectors, the functions of a `Machine`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprune.lower.cpu.emit import ON_STACK, Buffer, Expr, IRBuilder, T, loop, tirx, unroll
from hwprune.lower.int8.machine import Machine
from hwprune.lower.spec import ALIGNMENT, TensorSpec

__all__ = [
    "Buffer",
    "Code",
    "Expr",
    "T",
    "build_function",
    "call",
    "cast",
    "const",
    "i32",
    "load",
    "local",
    "loop",
    "requantized",
    "splat",
    "store",
    "store_some",
    "tirx",
    "unroll",
    "vector_index",
    "vector_type",
]


@dataclass(frozen=True, eq=False)
class Code:
    """A kernel: its function, the rule that wrote it and why, and the arrays that it reads.

    Arguments of `func`: inputs, constants, output.
    """

    rule: str
    reason: str
    func: Any
    constants: tuple[np.ndarray, ...] = ()


def build_function(
    machine: Machine,
    inputs: Sequence[TensorSpec],
    constants: Sequence[np.ndarray],
    output: TensorSpec,
    body: Callable[[list[Buffer], list[Buffer], Buffer], None],
) -> Any:
    """A PrimFunc over inputs, constants and the output, with the machine's functions at hand."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("kernel")
            xs = [T.arg(f"x{i}", _placed(spec)) for i, spec in enumerate(inputs)]
            cs = [
                T.arg(f"c{i}", T.buffer(array.shape, str(array.dtype)))
                for i, array in enumerate(constants)
            ]
            y = T.arg("y", _placed(output))
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
            with T.attr(0, "pragma_import_llvm", machine.library):
                body(xs, cs, y)
    return builder.get()


def _placed(spec: TensorSpec) -> Any:
    """A buffer that may lie anywhere in an arena, on a cache line."""
    item = np.dtype(spec.dtype).itemsize
    return T.buffer(spec.shape, spec.dtype, offset_factor=ALIGNMENT // item)


def local(shape: tuple[int, ...], dtype: str = "int32") -> Buffer:
    """An array that LLVM turns into registers."""
    return T.alloc_buffer(shape, dtype, scope="local", annotations=ON_STACK)


def vector_index(first: Expr, lanes: int) -> Expr:
    """`lanes` elements from `first` on."""
    return i32(first) if lanes == 1 else tirx.Ramp(i32(first), i32(1), lanes)


def load(buffer: Buffer, first: Expr, lanes: int) -> Expr:
    """A vector from a flat buffer."""
    return buffer[vector_index(first, lanes)]


def store(buffer: Buffer, value: Expr, first: Expr, lanes: int) -> None:
    """A vector into a flat buffer."""
    T.buffer_store(buffer, value, [vector_index(first, lanes)])


def const(value: float, dtype: str) -> Expr:
    """A number of a type."""
    return tirx.const(value, dtype)


def i32(value: Expr) -> Expr:
    """The number as int32."""
    return tirx.const(value, "int32") if isinstance(value, int) else value


def cast(value: Expr, dtype: str, lanes: int) -> Expr:
    """A vector of another type."""
    return tirx.Cast(vector_type(dtype, lanes), value)


def vector_type(dtype: str, lanes: int) -> str:
    """The type of a vector; of one lane it is a plain number."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def call(name: str, lanes: int, *args: Expr) -> Expr:
    """An int32 vector from a function of the machine."""
    return T.call_extern(vector_type("int32", lanes), f"hwprune_{name}", *args)


def splat(value: Expr, lanes: int, dtype: str = "int32") -> Expr:
    """A vector of one number."""
    one = const(value, dtype) if isinstance(value, int | float) else value
    return one if lanes == 1 else tirx.Broadcast(one, lanes)


def requantized(acc: Expr, multiplier: Expr, shift: Expr, lanes: int) -> Expr:
    """Accumulators scaled: shifts to the right."""
    return call(f"requantize_{lanes}", lanes, acc, multiplier, shift)


def store_some(buffer: Buffer, value: Expr, first: Expr, lanes: int, count: int) -> None:
    """The first `count` lanes of a vector into a flat buffer."""
    if count == lanes:
        store(buffer, value, first, lanes)
        return
    whole = local((lanes,), str(buffer.dtype))
    store(whole, value, 0, lanes)
    store(buffer, load(whole, 0, count), first, count)
