"""What int8 kernels take on this machine: rows of its latency table, timed in turn.

In: the kernels of an int8 network as `Workload`s (`mcu_price/kernels.py`). Out: rows. Kernels hold
made-up constants of the size and range that a network's have, which change no loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from hwprune.errors import HwpruneError, LoweringError
from hwprune.lower.codegen import compile_functions
from hwprune.lower.cpu.context import Context
from hwprune.lower.int8.emit import Code
from hwprune.lower.int8.layout import spec_of
from hwprune.lower.int8.machine import machine_of
from hwprune.lower.int8.rules import code_for
from hwprune.lower.kernels import tvm_target
from hwprune.lower.spec import TensorSpec, Workload
from hwprune.mcu_price.kernels import example
from hwprune.measure import Measured, failed_row, time_rounds, timed_rows, weight_copies
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
    started = time.perf_counter()
    wanted = tuple(dict.fromkeys(workloads))
    missing = table.missing(wanted, threads)
    reused, failed = len(wanted) - len(missing), []
    done = reused
    for begin in range(0, len(missing), BATCH):
        batch = missing[begin : begin + BATCH]
        with table.measuring():
            mine = table.missing(batch, threads)  # others may have measured some meanwhile
            rows = _rows(mine, target, threads)
            table.put(rows)
        reused += len(batch) - len(mine)
        failed += [row.workload for row in rows if row.failure]
        done += len(batch)
        if progress is not None:
            progress(done, len(wanted))
    seconds = time.perf_counter() - started
    return Measured(reused, len(wanted) - reused, tuple(failed), seconds)


def time_kernels(workloads: Sequence[Workload], target: Target, threads: int) -> np.ndarray:
    """(rounds, kernels) microseconds, timed in turn: weights come from far, inputs from near."""
    machine, context = machine_of(target), Context.of(target, threads)
    codes, tensors = [], []
    for workload in workloads:
        made = example(workload)
        codes.append(code_for(made.operator, made.inputs, made.output, machine, context))
        tensors.append([spec_of(t, machine) for t in (*made.inputs, made.output)])
    library = _compiled(codes, target)
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


def _compiled(codes: Sequence[Code], target: Target) -> dict[str, Any]:
    """The kernels k0, k1, … loaded."""
    names = [f"k{i}" for i in range(len(codes))]
    functions = {
        name: code.func.with_attr("global_symbol", name)
        for name, code in zip(names, codes, strict=True)
    }
    try:
        modules = compile_functions(functions, tvm_target(target))
    except Exception as error:
        raise LoweringError(f"TVM cannot compile the kernels: {error}") from error
    found: dict[str, Any] = {}
    for module in modules:
        found |= {n: module[n] for n in names if n not in found and module.implements_function(n)}
    return found


def _rows(workloads: Sequence[Workload], target: Target, threads: int) -> list[Row]:
    """Rows of kernels timed in turn; those of a failing batch by halves."""
    if not workloads:
        return []
    try:
        times = time_kernels(workloads, target, threads)
    except (HwpruneError, RuntimeError, ValueError, TypeError) as error:
        if len(workloads) == 1:
            return [failed_row(workloads[0], threads, str(error).strip() or type(error).__name__)]
        half = len(workloads) // 2
        return _rows(workloads[:half], target, threads) + _rows(workloads[half:], target, threads)
    return timed_rows(workloads, threads, times)


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
