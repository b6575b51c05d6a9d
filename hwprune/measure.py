"""`measure`: fill a `LatencyTable` by timing kernels on this machine; `fill`: on any.

Kernels are compiled in batches and timed in turn, round after round, as a network would run
them: a kernel finds its input just written and its weights pushed out of the near caches by the
others'. (Timed alone and warm, the kernels of EfficientNet-Lite0 added up to 20 to 30 % less than
they took in the network; in turn, to 7 % less, and to 1 % more once pruned by half.) A finished
batch is committed at once: a killed run loses no finished row, and a second run goes on where it
stopped.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from hwprune.errors import HwpruneError
from hwprune.lower.spec import TensorSpec, Workload
from hwprune.quiet import SECONDS, quietest
from hwprune.table import LatencyTable, Row
from hwprune.target import Target, check_runnable
from hwprune.tvm_runtime import load_tvm, set_threads

BATCH = 24  # kernels compiled into one module
WARM_UP = 2  # rounds
ROUNDS = (5, 31)  # at least; and so many are enough once `SECONDS` have passed
KERNEL_SECONDS = 0.05  # per kernel of a batch; more rounds than the least only within this
FAR_CACHES = 4  # weights of this many second-level caches pass between two uses of a kernel's
MOST_COPIES = 32

Progress = Callable[[int, int], None]  # (kernels done, kernels in all)


@dataclass(frozen=True)
class Measured:
    """What a run of `measure` did; `predicted` rows come from a model instead."""

    reused: int
    measured: int
    failed: tuple[Workload, ...]
    seconds: float
    predicted: int = 0

    def then(self, later: Measured) -> Measured:
        """This run and a later one that also asked for everything of this one."""
        failed = tuple(dict.fromkeys((*self.failed, *later.failed)))
        seconds = self.seconds + later.seconds
        made = self.measured + self.predicted
        return Measured(
            later.reused - made,
            later.measured + self.measured,
            failed,
            seconds,
            later.predicted + self.predicted,
        )

    def beside(self, later: Measured) -> Measured:
        """This run and a later one with questions of its own: each counts what it found there."""
        return replace(self.then(later), reused=self.reused + later.reused)


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

    def time_batch(batch: Sequence[Workload]) -> Iterator[Row]:
        return by_halves(batch, lambda some: _time_batch(some, target, threads), threads)

    return fill(table, workloads, threads, BATCH, time_batch, progress)


def fill(
    table: LatencyTable,
    workloads: Iterable[Workload],
    threads: int,
    size: int,
    time_batch: Callable[[Sequence[Workload]], Iterable[Row]],
    progress: Progress | None = None,
) -> Measured:
    """Put the rows that a table lacks into it, `size` kernels at once, each batch durably.

    `time_batch` gives the rows of some kernels while no other process measures; with `failure`
    where one could not be measured. What it raises ends the run; finished rows stay.
    """
    started = time.perf_counter()
    wanted = tuple(dict.fromkeys(workloads))
    missing = table.missing(wanted, threads)
    done = reused = len(wanted) - len(missing)
    failed: list[Workload] = []
    for begin in range(0, len(missing), size):
        batch = missing[begin : begin + size]
        with table.measuring():
            mine = table.missing(batch, threads)  # others may have measured some meanwhile
            rows: list[Row] = []
            try:
                for row in time_batch(mine):
                    rows.append(row)
            finally:
                table.put(rows)
        reused += len(batch) - len(mine)
        failed += [row.workload for row in rows if row.failure]
        done += len(batch)
        if progress is not None:
            progress(done, len(wanted))
    seconds = time.perf_counter() - started
    return Measured(reused, len(wanted) - reused, tuple(failed), seconds)


def by_halves(
    workloads: Sequence[Workload],
    attempt: Callable[[Sequence[Workload]], Iterable[Row]],
    threads: int,
    *,
    source: str = "device",
    fatal: tuple[type[Exception], ...] = (),
) -> Iterator[Row]:
    """The rows of kernels that `attempt` takes together; where it fails, those of both halves.

    A kernel with which it fails alone has a row of `source` that says why. Raises what is `fatal`,
    and what comes out of an iterator that `attempt` has returned.
    """
    if not workloads:
        return
    try:
        rows = attempt(workloads)
    except (HwpruneError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, fatal):
            raise
        if len(workloads) == 1:
            reason = str(error).strip() or type(error).__name__
            yield failed_row(workloads[0], threads, reason, source)
            return
        half = len(workloads) // 2
        for part in (workloads[:half], workloads[half:]):
            yield from by_halves(part, attempt, threads, source=source, fatal=fatal)
        return
    yield from rows


def require_measured(workloads: Iterable[Workload], table: LatencyTable, threads: int) -> None:
    """Raise TableError naming the first kernel that has no usable row."""
    for workload in workloads:
        table.latency_us(workload, threads)


def time_together(workloads: Sequence[Workload], target: Target, threads: int) -> np.ndarray:
    """Compile kernels together and time them in turn: (rounds, kernels) microseconds.

    Nothing is stored. Raises LoweringError if one cannot be compiled, TargetError if they cannot
    run here.
    """
    from hwprune.lower import build_kernels

    return _time_module(build_kernels(workloads, target, threads), target)


def timed_rows(
    workloads: Sequence[Workload], threads: int, times: np.ndarray, versions: str = ""
) -> list[Row]:
    """The rows of kernels timed together, of their quietest moments.

    `times` are (rounds, kernels) microseconds.
    """
    p10, median, p90 = np.percentile(quietest(times), [10, 50, 90], axis=0)
    return [
        Row(workload, threads, float(m), float(low), float(high), len(times), versions=versions)
        for workload, m, low, high in zip(workloads, median, p10, p90, strict=True)
    ]


def failed_row(workload: Workload, threads: int, reason: str, source: str = "device") -> Row:
    """The row of a kernel that could not be measured; the first line of the reason is kept."""
    text = (reason.strip().splitlines() or ["no reason"])[0][:300]
    return Row(workload, threads, np.nan, np.nan, np.nan, 0, source=source, failure=text)


def time_rounds(
    launches: Sequence[Callable[[int], None]], prepare: Sequence[Callable[[], None]]
) -> np.ndarray:
    """Microseconds of every launch in every round, (rounds, launches) float64.

    `launches[i](round)` is timed right after `prepare[i]()`, which is not.
    """
    least, enough = ROUNDS
    longest = max(KERNEL_SECONDS * len(launches), SECONDS)
    rows: list[list[float]] = []
    with _no_garbage_collection():
        started = time.perf_counter()
        for number in count():
            done, taken = number - WARM_UP, time.perf_counter() - started
            if done >= least and taken > (SECONDS if done >= enough else longest):
                break
            row = []
            for launch, ready in zip(launches, prepare, strict=True):
                ready()
                start = time.perf_counter_ns()
                launch(number)
                row.append((time.perf_counter_ns() - start) / 1000)
            rows.append(row)
    return np.array(rows[WARM_UP:])


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _time_batch(workloads: Sequence[Workload], target: Target, threads: int) -> list[Row]:
    """Compile kernels together and time them in turn."""
    return timed_rows(workloads, threads, time_together(workloads, target, threads))


def _time_module(module: Any, target: Target) -> np.ndarray:
    """Time all kernels of a module in turn: (rounds, kernels) microseconds."""
    arena = _Arena(module.workloads, module.lanes)
    arguments = [module.random_arguments(i) for i in range(len(module.workloads))]
    arities = [len(workload.inputs) for workload in module.workloads]
    pairs = list(zip(arguments, arities, strict=True))
    weights = [[t.numpy() for t in given[arity:-1]] for given, arity in pairs]
    copies = weight_copies(sum(w.nbytes for group in weights for w in group), target)
    launches, prepare = [], []
    for i, (given, arity) in enumerate(pairs):
        inputs, output, ready = arena.place(module.workloads[i], given[:arity], given[-1])
        turns = [(*inputs, *(_tensor(w) for w in weights[i]), output) for _ in range(copies)]
        launches.append(_launcher(module.library[f"k{i}"], turns))
        prepare.append(ready)
    set_threads(module.threads)
    return time_rounds(launches, prepare)


def _launcher(kernel: Callable[..., Any], turns: list[tuple[Any, ...]]) -> Callable[[int], None]:
    def launch(number: int) -> None:
        kernel(*turns[number % len(turns)])

    return launch


class _Arena:
    """Two buffers that all kernels read from and write to, as a network's memory plan has it.

    The first float32 input of a kernel lies in one, its output in the other. Before a launch the
    input is written again, so that it is as near as a producer would have left it.
    """

    def __init__(self, workloads: Sequence[Workload], lanes: int) -> None:
        self.lanes = lanes
        self._input = self._buffer([w.inputs[0] for w in workloads if w.inputs])
        self._output = self._buffer([w.output for w in workloads])
        values = np.random.default_rng(0).standard_normal(self._input.size)
        self._input[:] = values.astype(np.float32)

    def place(
        self, workload: Workload, inputs: Sequence[Any], output: Any
    ) -> tuple[list[Any], Any, Callable[[], None]]:
        """(inputs, output, what to do before a launch) with the big tensors in the arena."""
        placed = list(inputs)
        ready: Callable[[], None] = _nothing
        if placed and workload.inputs[0].dtype == "float32":
            view, placed[0] = self._view(self._input, workload.inputs[0])
            ready = _toucher(view)
        if workload.output.dtype == "float32":
            output = self._view(self._output, workload.output)[1]
        return placed, output, ready

    def _buffer(self, specs: Sequence[TensorSpec]) -> np.ndarray:
        sizes = [int(np.prod(spec.physical(self.lanes))) for spec in specs]
        raw = np.zeros(max(sizes, default=1) + 16, np.float32)
        skip = -raw.ctypes.data % 64 // 4
        return raw[skip : skip + max(sizes, default=1)]

    def _view(self, buffer: np.ndarray, spec: TensorSpec) -> tuple[np.ndarray, Any]:
        shape = spec.physical(self.lanes)
        view = buffer[: int(np.prod(shape))].reshape(shape)
        return view, load_tvm().runtime.from_dlpack(view)


def _nothing() -> None:
    pass


def _toucher(view: np.ndarray) -> Callable[[], None]:
    def touch() -> None:
        np.multiply(view, np.float32(1.0), out=view)

    return touch


def _tensor(array: np.ndarray) -> Any:
    return load_tvm().runtime.tensor(array)


def weight_copies(weight_bytes: int, target: Target) -> int:
    """How many copies of a batch's weights, used in turn, keep them out of the near caches."""
    far = FAR_CACHES * (target.l2_bytes or 2**20)
    return int(np.clip(round(far / max(weight_bytes, 1)), 1, MOST_COPIES))
