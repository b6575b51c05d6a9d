"""`Work`: what a kernel asks of a core, counted; and the time of each count at the core's best.

In: the counts of one kernel and a `Machine`. Out: the terms of the latency model in microseconds.
The latency is a positive combination of them: a coefficient of 1 says that the core does as its
description says, alone.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from hwprune.predict.machine import Machine

DIRECT, WINOGRAD, DEPTHWISE, OTHER = "direct", "winograd", "depthwise", "other"
ALGORITHMS = (DIRECT, WINOGRAD, DEPTHWISE, OTHER)
NEAR_BYTES_PER_CYCLE = 8.0  # of tensors that are read and written once, out of level 2
LAUNCH_US = 10.0  # a call, and threads that are woken and waited for
UNKNOWN_MEMORY_BYTES_PER_S = 8e9  # of a target that does not say


@dataclass(frozen=True)
class Terms:
    """A value for each term of the latency, in the order of `TERMS`."""

    multiply: float  # multiply-adds, with tails of vectors and of threads
    load: float  # operands of the inner loop
    partial: float  # unfinished sums, stored and read again
    arrange: float  # elements copied one by one: borders, patches, transforms
    near: float  # inputs and output, once, through the caches
    far: float  # those that no cache holds, to and from memory
    weights: float  # from memory
    launch: float

    def array(self) -> np.ndarray:
        """(terms,) float64."""
        return np.array(astuple(self), dtype=float)


TERMS = tuple(Terms.__dataclass_fields__)


@dataclass(frozen=True)
class Work:
    """The counts of one kernel; vectors are of the thread that has most to do."""

    algorithm: str  # of ALGORITHMS
    multiply_vectors: float
    load_vectors: float
    partial_vectors: float
    arranged: float  # elements, of all threads
    tensor_bytes: tuple[float, ...]  # of each input and the output
    weight_bytes: float
    traits: tuple[float, ...]  # where the kernel lies among others: see `residual`

    def terms(self, machine: Machine) -> Terms:
        """Microseconds of every count at the best that the machine is described to do."""
        memory = memory_rate(machine)
        far_bytes = sum(b * beyond(b, machine.l2_bytes) for b in self.tensor_bytes)
        return Terms(
            multiply=machine.us(self.multiply_vectors / machine.fma_per_cycle),
            load=machine.us(self.load_vectors / machine.loads_per_cycle),
            partial=machine.us(2 * self.partial_vectors / machine.loads_per_cycle),
            arrange=machine.us(self.arranged / machine.threads),
            near=machine.us(sum(self.tensor_bytes) / NEAR_BYTES_PER_CYCLE / machine.threads),
            far=far_bytes / memory * 1e6,
            weights=self.weight_bytes / memory * 1e6,
            launch=LAUNCH_US,
        )


def memory_rate(machine: Machine) -> float:
    """Bytes per second of the memory, as described."""
    return machine.memory_bytes_per_s or UNKNOWN_MEMORY_BYTES_PER_S


def beyond(size_bytes: float, cache_bytes: int) -> float:
    """The share of a tensor that has left a cache before it is read again."""
    return min(max(2 * size_bytes / cache_bytes - 1, 0.0), 1.0)


def blocks(extent: int, size: int) -> int:
    """Pieces of `size` that cover an extent."""
    return -(-extent // size)


def imbalance(pieces: int, threads: int) -> float:
    """Time of the busiest thread over that of an even share, of equal pieces."""
    return blocks(pieces, threads) * threads / pieces
