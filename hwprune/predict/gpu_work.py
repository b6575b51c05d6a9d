"""`GpuWork`: what a kernel asks of a GPU, counted; and the time of each count at the GPU's best.

In: the counts of one kernel and a `Gpu`. Out: the terms of the latency model in microseconds. The
pipes of a multiprocessor work beside each other (Williams, Waterman and Patterson, Roofline, 2009),
so that the busiest counts in full and the others by what is not hidden.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from hwprune.gpu import WARP, Gpu

TENSOR, DIRECT, WINOGRAD = "tensor", "direct", "winograd"
DEPTHWISE, OTHER = "depthwise", "other"
GPU_ALGORITHMS = (TENSOR, DIRECT, WINOGRAD, DEPTHWISE, OTHER)
SHARED_BYTES_PER_CYCLE = 128.0  # 32 banks of 4 bytes, of all architectures since Maxwell
STEP_CYCLES = 500.0  # a round trip to memory or level 2, and a barrier


@dataclass(frozen=True)
class GpuTerms:
    """A value for each term of the latency, in the order of `GPU_TERMS`."""

    busy: float  # of the busiest pipe: multiply-adds, shared memory, level 2, memory
    multiply: float  # what each pipe takes, to be hidden behind the busiest
    shared: float
    level2: float
    memory: float
    steps: float  # round trips that a wave of blocks waits for
    launch: float

    def array(self) -> np.ndarray:
        """(terms,) float64."""
        return np.array(astuple(self), dtype=float)


GPU_TERMS = tuple(GpuTerms.__dataclass_fields__)


@dataclass(frozen=True)
class GpuWork:
    """The counts of one kernel; cycles are of the multiprocessor that has most to do."""

    algorithm: str  # of GPU_ALGORITHMS
    multiply_cycles: float
    shared_bytes: float  # of that multiprocessor
    level2_bytes: float  # of all
    memory_bytes: float  # of all
    steps: float  # one after the other
    launches: int
    traits: tuple[float, ...]  # where the kernel lies among others: see `residual`

    def terms(self, gpu: Gpu) -> GpuTerms:
        """Microseconds of every count at the best that the GPU is described to do."""
        cycle_us = 1e6 / gpu.clock_hz
        pipes = (
            self.multiply_cycles * cycle_us,
            self.shared_bytes / SHARED_BYTES_PER_CYCLE * cycle_us,
            self.level2_bytes / gpu.l2_bytes_per_s * 1e6,
            self.memory_bytes / gpu.memory_bytes_per_s * 1e6,
        )
        steps = self.steps * STEP_CYCLES * cycle_us
        return GpuTerms(max(pipes), *pipes, steps, self.launches * gpu.launch_us)


def lanes(gpu: Gpu, dtype: str = "float32") -> float:
    """Multiply-adds of a type that the CUDA cores of one multiprocessor do in a cycle."""
    rate = gpu.vector_flop_per_s.get(dtype, gpu.vector_flop_per_s["float32"])
    return rate / (2 * gpu.sms * gpu.clock_hz)


def warps(threads: np.ndarray) -> np.ndarray:
    """Warps of that many threads each."""
    return np.ceil(threads / WARP)
