"""What kernels share that read values where they lie: their arguments; one value after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from hwprune.lower.mcu.emit import (
    Argument,
    Buffer,
    CKernel,
    Expr,
    T,
    build_function,
    constant,
    loop,
)
from hwprune.quantize.graph import IntegerTensor

Tensors = Sequence[IntegerTensor]
Value = Callable[[dict[str, Buffer], Expr], Expr]


def arguments_of(
    inputs: Tensors,
    y: IntegerTensor,
    constants: Sequence[np.ndarray] = (),
    names: Sequence[str] = (),
) -> tuple[Argument, ...]:
    """Inputs (x0, x1, ..., or `names`), constants (c0, c1, ...) and the result y, whole."""
    called = names or [f"x{i}" for i in range(len(inputs))]
    return (
        *(Argument(n, t.dtype, prod(t.shape)) for n, t in zip(called, inputs, strict=True)),
        *(constant(f"c{i}", array) for i, array in enumerate(constants)),
        Argument("y", y.dtype, prod(y.shape), const=False),
    )


def each(
    rule: str,
    inputs: Tensors,
    y: IntegerTensor,
    value: Value,
    constants: tuple[np.ndarray, ...] = (),
) -> CKernel:
    """A kernel that makes every element from those at its place: in place where that is asked.

    `value` gives element i of the result from the buffers by name.
    """
    arguments = arguments_of(inputs, y, constants)

    def body(**b: Buffer) -> None:
        with loop(prod(y.shape)) as i:
            T.buffer_store(b["y"], value(b, i), [i])

    return CKernel(rule, build_function(arguments, body), arguments, constants, in_place=True)
