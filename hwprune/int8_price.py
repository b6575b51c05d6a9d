"""What int8 kernels take on this machine: rows of its latency table, timed in turn.

In: the kernels of an int8 network as `Workload`s (`mcu_price/kernels.py`). Out: rows. Kernels hold
made-up constants of the size and range that a network's have, which change no loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from hwprune.lower.build import compile_numbered, loaded
from hwprune.lower.cpu.context import Context
from hwprune.lower.int8.layout import spec_of
from hwprune.lower.int8.machine import machine_of
from hwprune.lower.int8.rules import code_for
from hwprune.lower.spec import TensorSpec, Workload
from hwprune.mcu_price.kernels import example
from hwprune.measure import Measured, by_halves, fill, time_rounds, timed_rows, weight_copies
from hwprune.table import LatencyTable, Row
from hwprune.target import Target, check_runnable
from hwprune.tvm_runtime import load_tvm, set_threads

BATCH = 24  # kernels timed in turn


def measure_int8(
    workloads: Iterable[Workload],
    target: Target,
    threads: int,
    table: LatencyTable,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Time the int8 kernels that the table lacks, on this machine; every batch is kept at once.

    A kernel that cannot be compiled is recorded as failed and reported, not raised. Raises
    TargetError if the target cannot run here.
    """
    check_runnable(target)

    def time_batch(batch: Sequence[Workload]) -> Iterable[Row]:
        return by_halves(batch, lambda some: _rows(some, target, threads), threads)

    return fill(table, workloads, threads, BATCH, time_batch, progress)


def time_kernels(workloads: Sequence[Workload], target: Target, threads: int) -> np.ndarray:
    """(rounds, kernels) microseconds, timed in turn: weights come from far, inputs from near."""
    machine, context = machine_of(target), Context.of(target, threads)
    codes, tensors = [], []
    for workload in workloads:
        made = example(workload)
        codes.append(code_for(made.operator, made.inputs, made.output, machine, context))
        tensors.append([spec_of(t, machine) for t in (*made.inputs, made.output)])
    library = loaded(compile_numbered([code.func for code in codes], target))
    copies = weight_copies(sum(a.nbytes for code in codes for a in code.constants), target)
    launches, prepare = [], []
    for i, (code, specs) in enumerate(zip(codes, tensors, strict=True)):
        inputs = [_filled(spec, i) for spec in specs[:-1]]
        output = _tensor(_filled(specs[-1], i))
        turns = [
            (*map(_tensor, inputs), *map(_tensor, code.constants), output) for _ in range(copies)
        ]
        launches.append(_launcher(library[f"k{i}"], turns))
        prepare.append(_toucher(inputs[0]))
    set_threads(threads)
    return time_rounds(launches, prepare)


def _rows(workloads: Sequence[Workload], target: Target, threads: int) -> list[Row]:
    return timed_rows(workloads, threads, time_kernels(workloads, target, threads))


def _filled(spec: TensorSpec, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if spec.dtype.startswith("float"):
        return rng.standard_normal(spec.shape).astype(spec.dtype)
    return rng.integers(0, 100, spec.shape).astype(spec.dtype)


def _tensor(array: np.ndarray) -> Any:
    return load_tvm().runtime.tensor(np.ascontiguousarray(array))


def _launcher(kernel: Any, turns: list[tuple[Any, ...]]) -> Callable[[int], None]:
    return lambda number: kernel(*turns[number % len(turns)])


def _toucher(array: np.ndarray) -> Callable[[], None]:
    return lambda: np.copyto(array, array)
