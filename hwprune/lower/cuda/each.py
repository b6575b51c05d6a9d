"""Kernels of independent threads: each makes one vector of the output.

In: the function under construction and its output. Out: the launch, and the logical index of the
first element of a thread's vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

from hwprune.lower.cuda.emit import THREADS, Expr, Function, T, split_index, vector
from hwprune.lower.spec import NHWC, TensorSpec


@contextmanager
def each_vector(function: Function, spec: TensorSpec, count: int) -> Iterator[list[Expr]]:
    """The body for every vector of `count` elements of the output, by its first logical index.

    Where pixels are padded with channels, these are written as well.
    """
    memory = spec.physical(1)
    total = prod(memory) // count
    with function.launch(-(-total // THREADS), THREADS) as (block, _, thread):
        index = block * THREADS + thread
        with T.If(index < total), T.Then():
            yield logical(spec, split_index(index * count, memory))


def logical(spec: TensorSpec, at: list[Expr]) -> list[Expr]:
    """The logical index of an index of memory."""
    return [at[i] for i in (0, 3, 1, 2)] if spec.layout == NHWC else at


def natural_vector(spec: TensorSpec) -> int:
    """Elements of the widest vectors that rows of a tensor consist of."""
    return vector(spec.physical(1)[-1], spec.dtype)
