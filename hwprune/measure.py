"""`measure`: fill a `LatencyTable` by timing kernels on this machine.

Every finished row is committed at once, so a killed run loses nothing and a second run goes
on where it stopped. Kernels are timed as a network finds them: activations warm, weights not in
the cache nearest to the core, because other layers' weights have passed through it since.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np

from hwprune.errors import HwpruneError
from hwprune.lower.spec import Workload
from hwprune.table import LatencyTable, Row
from hwprune.target import Target, check_runnable
from hwprune.tvm_runtime import load_tvm, set_threads

BATCH = 16  # kernels compiled into one module
REPEATS = 12
REPEAT_US = 1500.0  # a repeat lasts at least this long
KERNEL_US = 150_000.0  # and a kernel's repeats together not much longer than this
MOST_COPIES = 64

Progress = Callable[[int, int], None]  # (kernels done, kernels in all)


@dataclass(frozen=True)
class Timing:
    """Microseconds of one launch over a number of repeats."""

    median_us: float
    p10_us: float
    p90_us: float
    repeats: int


@dataclass(frozen=True)
class Measured:
    """What a run of `measure` did."""

    reused: int
    measured: int
    failed: tuple[Workload, ...]
    seconds: float


def measure(
    workloads: Iterable[Workload],
    target: Target,
    threads: int,
    table: LatencyTable,
    *,
    progress: Progress | None = None,
) -> Measured:
    """Time the kernels that the table lacks, on this machine, and store every row at once.

    A kernel that cannot be compiled or run is recorded as failed and reported, not raised. Raises
    TargetError if the target cannot run here.
    """
    check_runnable(target)
    started = time.perf_counter()
    wanted = tuple(dict.fromkeys(workloads))
    missing = table.missing(wanted, threads)
    done, reused = len(wanted) - len(missing), len(wanted) - len(missing)
    failed: list[Workload] = []
    for begin in range(0, len(missing), BATCH):
        batch = missing[begin : begin + BATCH]
        with table.measuring():
            mine = table.missing(batch, threads)  # others may have measured some meanwhile
            done += len(batch) - len(mine)
            reused += len(batch) - len(mine)
            for row in _time_batch(mine, target, threads):
                table.put([row])
                failed += [row.workload] if row.failure else []
                done += 1
                if progress is not None:
                    progress(done, len(wanted))
    seconds = time.perf_counter() - started
    return Measured(reused, len(wanted) - reused, tuple(failed), seconds)


def require_measured(workloads: Iterable[Workload], table: LatencyTable, threads: int) -> None:
    """Raise TableError naming the first kernel that has no usable row."""
    for workload in workloads:
        table.latency_us(workload, threads)


def time_launches(launch: Callable[..., Any], arguments: Sequence[Sequence[Any]]) -> Timing:
    """Time a function over argument lists used in turn."""
    turns = cycle([tuple(a) for a in arguments])
    warm_us = _mean_us(launch, turns, 1)
    warm_us = min(warm_us, _mean_us(launch, turns, 1 if warm_us > REPEAT_US else 5))
    number = max(1, round(REPEAT_US / warm_us))
    repeats = int(np.clip(KERNEL_US / (number * warm_us), 3, REPEATS))
    collecting = gc.isenabled()
    gc.disable()
    try:
        samples = [_mean_us(launch, turns, number) for _ in range(repeats)]
    finally:
        if collecting:
            gc.enable()
    p10, median, p90 = np.percentile(samples, [10, 50, 90])
    return Timing(float(median), float(p10), float(p90), repeats)


def _mean_us(launch: Callable[..., Any], turns: Iterator[tuple[Any, ...]], number: int) -> float:
    """Microseconds of one launch, the mean of `number`."""
    chosen = list(islice(turns, number))
    start = time.perf_counter_ns()
    for arguments in chosen:
        launch(*arguments)
    return (time.perf_counter_ns() - start) / (1000 * number)


def _time_batch(workloads: Sequence[Workload], target: Target, threads: int) -> Iterable[Row]:
    """Compile kernels together and time each; kernels of a failing batch get one by one."""
    from hwprune.lower import build_kernels

    if not workloads:
        return
    try:
        module = build_kernels(workloads, target, threads)
    except HwpruneError as error:
        if len(workloads) == 1:
            yield _failed(workloads[0], threads, error)
            return
        for workload in workloads:
            yield from _time_batch([workload], target, threads)
        return
    set_threads(threads)
    for i, workload in enumerate(workloads):
        try:
            timing = _time_kernel(module, i, target)
        except (HwpruneError, RuntimeError, ValueError, TypeError) as error:
            yield _failed(workload, threads, error)
            continue
        yield Row(workload, threads, timing.median_us, timing.p10_us, timing.p90_us, timing.repeats)


def _time_kernel(module: Any, i: int, target: Target) -> Timing:
    """Time kernel i of a compiled module with several copies of its weights in turn."""
    arguments = module.random_arguments(i)
    first = len(module.workloads[i].inputs)
    weights = arguments[first:-1]
    size = sum(w.numpy().nbytes for w in weights)
    copies = _copies(size, target)
    tensor = load_tvm().runtime.tensor
    arrays = [w.numpy() for w in weights]
    rounds = [arguments]
    for _ in range(copies - 1):
        rounds.append([*arguments[:first], *(tensor(a.copy()) for a in arrays), arguments[-1]])
    return time_launches(module.library[f"k{i}"], rounds)


def _copies(weight_bytes: int, target: Target) -> int:
    """How many copies of a kernel's weights push each other out of the second-level cache."""
    if not weight_bytes:
        return 1
    private = target.l2_bytes or 2**20
    return int(np.clip(-(-2 * private // weight_bytes), 2, MOST_COPIES))


def _failed(workload: Workload, threads: int, error: Exception) -> Row:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return Row(workload, threads, np.nan, np.nan, np.nan, 0, failure=reason)
