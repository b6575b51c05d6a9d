"""What a board's driver is told of the kernels that it is to launch.

In: kernels of one library. Out: a `LaunchPlan`, the integers that `driver.c` reads, and the memory
that it will take. As on this machine, big values share two buffers, and the weights of a kernel
exist several times where they would otherwise stay in the near caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwprune.lower.spec import Kernel, TensorSpec, Workload
from hwprune.measure import weight_copies
from hwprune.target import Target

OWN, INPUT, OUTPUT, WEIGHT = range(4)  # of driver.c
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLPack's, by NumPy's kind


@dataclass(frozen=True)
class LaunchPlan:
    """`numbers` for the driver (int64), and the bytes of all buffers that they ask for."""

    numbers: np.ndarray
    memory_bytes: int


@dataclass(frozen=True)
class _Argument:
    role: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def numbers(self) -> list[int]:
        dtype = np.dtype(self.dtype)
        code, bits = _CODES[dtype.kind], 8 * dtype.itemsize
        return [self.role, code, bits, len(self.shape), *self.shape]


def launch_plan(
    workloads: Sequence[Workload], kernels: Sequence[Kernel], target: Target
) -> LaunchPlan:
    """The plan of kernels that are timed in turn."""
    calls = [
        _arguments(workload, kernel, target.lanes)
        for workload, kernel in zip(workloads, kernels, strict=True)
    ]
    flat = [argument for call in calls for argument in call]
    sizes = {
        role: max((a.nbytes for a in flat if a.role == role), default=4) // 4 + 16
        for role in (INPUT, OUTPUT)
    }
    weights = sum(a.nbytes for a in flat if a.role == WEIGHT)
    copies = weight_copies(weights, target)
    own = sum(a.nbytes for a in flat if a.role == OWN)
    numbers = [len(calls), copies, sizes[INPUT], sizes[OUTPUT]]
    for call in calls:
        numbers.append(len(call))
        for argument in call:
            numbers += argument.numbers()
    memory = 4 * sum(sizes.values()) + own + copies * weights
    return LaunchPlan(np.array(numbers, np.int64), memory)


def _arguments(workload: Workload, kernel: Kernel, lanes: int) -> list[_Argument]:
    """Inputs, packed parameters and the output, as the kernel takes them."""
    found = [_argument(OWN, spec, lanes) for spec in workload.inputs]
    if found and workload.inputs[0].dtype == "float32":
        found[0] = _argument(INPUT, workload.inputs[0], lanes)
    params = tuple(np.zeros(spec.shape, spec.dtype) for spec in workload.params)
    found += [_Argument(WEIGHT, a.shape, str(a.dtype)) for a in kernel.pack(params)]
    role = OUTPUT if workload.output.dtype == "float32" else OWN
    return [*found, _argument(role, workload.output, lanes)]


def _argument(role: int, spec: TensorSpec, lanes: int) -> _Argument:
    return _Argument(role, spec.physical(lanes), spec.dtype)
