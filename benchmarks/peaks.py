"""What this machine can do at most: multiply-adds from registers, bytes from each cache and memory.

Measured with kernels of our own through TVM, as the networks' kernels are: independent
accumulators that never leave their registers, and sums over (or a triad of) a buffer that fits in a
cache, or in none.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hwprune.lower.cpu import emit
from hwprune.lower.cpu.emit import Buffer, Expr, T, const, loop
from hwprune.lower.kernels import tvm_target
from hwprune.target import Target
from hwprune.tvm_runtime import compiling, load_tvm, set_threads

LATENCY_HIDING = 10  # accumulators: four cycles of latency, two multiply-adds a cycle, and some
PASSES = 10_000  # over the accumulators, in a launch
STREAMS = 8  # vectors summed side by side
REPEATS = 30
MEMORY_BYTES = 512 << 20
SHARE = 0.5  # of a cache that a buffer may fill and still be found there


@dataclass(frozen=True)
class Peaks:
    """Measured with `threads` threads; bytes a second by level: "L2", "L3", "memory"."""

    threads: int
    flops_per_s: float
    bytes_per_s: dict[str, float]
    level_bytes: dict[str, int]  # how much a level holds of what all threads share

    def level(self, working_set: int) -> str:
        """The nearest level that holds so many bytes."""
        near = [name for name, held in self.level_bytes.items() if working_set <= held]
        return near[0] if near else "memory"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def measure_peaks(target: Target, threads: int) -> Peaks:
    """The peaks of this machine."""
    l2 = threads * (target.l2_bytes or 1 << 20)
    levels = {"L2": l2, "L3": max(target.l3_bytes or 16 << 20, 2 * l2)}
    rates = {
        name: bandwidth(target, threads, int(SHARE * size) if name == "L2" else (l2 + size) // 4)
        for name, size in levels.items()
    }
    rates["memory"] = bandwidth(target, threads, max(MEMORY_BYTES, 4 * levels["L3"]))
    return Peaks(threads, multiply_adds(target, threads), rates, levels)


def multiply_adds(target: Target, threads: int) -> float:
    """Operations a second of fused multiply-adds whose operands stay in registers."""
    burst = Burst(target, threads)
    return burst.operations / min(burst() for _ in range(REPEATS * 10))


class Burst:
    """Some ten microseconds of multiply-adds at the machine's peak; a call gives their seconds.

    A machine whose cores are shared is at times half as fast. What runs beside such a burst tells
    how far a kernel is from the peak that the machine had just then.
    """

    def __init__(self, target: Target, threads: int) -> None:
        lanes, count = target.lanes, LATENCY_HIDING
        shapes = ((2, lanes), (threads, count, lanes))
        tensor = load_tvm().runtime.tensor
        self.operations = 2.0 * threads * count * lanes * PASSES
        self._arrays = [tensor(np.ones(shape, np.float32)) for shape in shapes]
        self._launch = _compiled(fma_function(target, threads), target, threads)["main"]

    def __call__(self) -> float:
        start = time.perf_counter()
        self._launch(*self._arrays)
        return time.perf_counter() - start


def bandwidth(target: Target, threads: int, size: int) -> float:
    """Bytes a second over a working set of `size`: the better of reading and of a triad."""
    rows = max(size // (4 * target.lanes * STREAMS * threads), 1)
    shape = (threads, rows, STREAMS, target.lanes)
    read = [np.zeros(shape, np.float32), np.zeros((threads, STREAMS, target.lanes), np.float32)]
    thirds = (threads, max(rows // 3, 1), STREAMS, target.lanes)
    triad = [np.zeros(thirds, np.float32) for _ in range(3)]
    return max(
        read[0].nbytes / _seconds(read_function(target, shape), read, target, threads),
        3 * triad[0].nbytes / _seconds(triad_function(target, thirds), triad, target, threads),
    )


def fma_function(target: Target, threads: int) -> Any:
    """`acc = acc * a + b` over accumulators that stay in registers."""
    lanes, count = target.lanes, LATENCY_HIDING

    def body(xs: list[Buffer], _: list[Buffer], y: Buffer) -> None:
        with emit.split_threads(threads, threads) as (first, mine), loop(mine) as i:
            acc = _accumulators(target, count)
            with T.serial(PASSES):
                for j in range(count):
                    with T.vectorized(lanes) as lane:
                        value = acc[j, lane] * xs[0][0, lane] + xs[0][1, lane]
                        T.buffer_store(acc, value, [j, lane])
            _store(acc, y, first + i, count, lanes)

    return emit.build_function("peak", ((2, lanes),), (), (threads, count, lanes), body)


def read_function(target: Target, shape: tuple[int, ...]) -> Any:
    """Sums of a buffer, `STREAMS` vectors side by side."""
    threads, rows, streams, lanes = shape

    def body(xs: list[Buffer], _: list[Buffer], y: Buffer) -> None:
        with emit.split_threads(threads, threads) as (first, mine), loop(mine) as i:
            acc = _accumulators(target, streams)
            with T.serial(rows) as row:
                for j in range(streams):
                    with T.vectorized(lanes) as lane:
                        value = acc[j, lane] + xs[0][first + i, row, j, lane]
                        T.buffer_store(acc, value, [j, lane])
            _store(acc, y, first + i, streams, lanes)

    return emit.build_function("read", (shape,), (), (threads, streams, lanes), body)


def triad_function(target: Target, shape: tuple[int, ...]) -> Any:
    """`y = a + 3 b`."""
    threads, rows, streams, lanes = shape

    def body(xs: list[Buffer], _: list[Buffer], y: Buffer) -> None:
        with emit.split_threads(threads, threads) as (first, mine), loop(mine) as i:
            with T.serial(rows) as row:
                for j in range(streams):
                    with T.vectorized(lanes) as lane:
                        at = (first + i, row, j, lane)
                        T.buffer_store(y, xs[0][at] + const(3.0) * xs[1][at], list(at))

    return emit.build_function("triad", (shape, shape), (), shape, body)


def _accumulators(target: Target, count: int) -> Buffer:
    made = T.alloc_buffer(
        (count, target.lanes), "float32", scope="local", annotations=emit.ON_STACK
    )
    for j in range(count):
        emit.store_vector(made, [j], target.lanes, lambda _: const(0.0))
    return made


def _store(acc: Buffer, y: Buffer, row: Expr, count: int, lanes: int) -> None:
    for j in range(count):
        with T.vectorized(lanes) as lane:
            T.buffer_store(y, acc[j, lane], [row, j, lane])


def _seconds(function: Any, arrays: list[np.ndarray], target: Target, threads: int) -> float:
    """The shortest of several launches: a peak is what the machine does undisturbed."""
    tvm, library = load_tvm(), _compiled(function, target, threads)
    timer = library.time_evaluator("main", tvm.cpu(), number=1, repeat=REPEATS, min_repeat_ms=2)
    return float(min(timer(*(tvm.runtime.tensor(a) for a in arrays)).results))


def _compiled(function: Any, target: Target, threads: int) -> Any:
    tvm = load_tvm()
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    with compiling():
        library = tvm.compile(module, target=tvm_target(target)).jit()
    set_threads(threads)
    return library
