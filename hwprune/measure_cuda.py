"""`measure_gpu`: fill a latency table by timing kernels on this machine's NVIDIA GPU; resumes.

Kernels are compiled in batches, one CUDA graph of many launches of each is replayed between two
events: what a kernel adds to a replayed graph, warm, its operands in level 2 where they fit (it is
not flushed). A finished batch is committed at once. A kernel that cannot be compiled or run is
recorded as failed.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

import numpy as np

from hwprune.cuda_ahead import Ahead
from hwprune.cuda_driver import Driver, GpuFacts, KernelError
from hwprune.cuda_errors import too_old
from hwprune.errors import TargetError
from hwprune.lower.kernels import kernel_for, tvm_target
from hwprune.lower.spec import Kernel, TensorSpec, Workload, numpy_type
from hwprune.measure import Measured, Progress, by_halves, failed_row, fill
from hwprune.nvcc import compile_cubin, find_nvcc
from hwprune.provenance import provenance_of
from hwprune.table import LatencyTable, Row
from hwprune.target import Target, list_targets, load_target

BATCH = 24  # kernels compiled together
REPEATS = 11
LAUNCHES = (10, 1000)  # of a graph, at least and at most
GRAPH_US = 2000.0  # that a graph takes about
SAMPLE_BYTES = 1 << 22  # of random values, over and over
_OFFSETS = {"int": ctypes.c_int32, "int64_t": ctypes.c_int64}


@dataclass(frozen=True)
class GpuTable:
    """The table of a kind of GPU, while it is open."""

    target: Target
    driver: Driver
    table: LatencyTable

    @property
    def facts(self) -> GpuFacts:
        """The GPU."""
        return self.driver.facts


@contextmanager
def open_gpu(target: Target, driver: Callable[[], Driver] = Driver) -> Iterator[GpuTable]:
    """Open this machine's GPU and the table of its kind.

    Raises TargetError where there is no driver or GPU, or it is not the target's, or the driver is
    older than the compiler; ToolchainError without one.
    """
    with driver() as opened:
        check_gpu(target, opened.facts)
        error = too_old(opened.facts.driver, toolkit_version())
        if error is not None:
            raise error
        facts, known = opened.facts, provenance_of(target)
        name = re.sub(r"\W+", "-", facts.name.lower())
        provenance = replace(
            known,
            fingerprint=f"gpu-{name}-{facts.multiprocessors}",
            versions=f"{known.versions}, {facts.name}, driver of CUDA {facts.driver}",
        )
        with LatencyTable.open(provenance) as table:
            yield GpuTable(target, opened, table)


def check_gpu(target: Target, facts: GpuFacts) -> None:
    """Raise TargetError unless this GPU runs a target's kernels, naming the targets it runs."""
    gpu = target.gpu
    if gpu is None or gpu.architecture == facts.architecture:
        return
    others = [load_target(name) for name in list_targets() if name != "host"]
    fit = [t.name for t in others if t.gpu and t.gpu.architecture == facts.architecture]
    raise TargetError(
        f"target {target.name!r} is for {gpu.architecture}, this GPU ({facts.name}) is "
        f"{facts.architecture}",
        where="GPU",
        hint=f"choose {' or '.join(fit)}"
        if fit
        else "copy a target and change it: docs/targets.md",
    )


def toolkit_version() -> tuple[int, int]:
    """(major, minor) of nvcc. Raises ToolchainError where there is none, or it does not say."""
    said = subprocess.run(
        [find_nvcc(), "--version"], capture_output=True, text=True, check=False
    ).stdout
    return parse_release(said)


def parse_release(text: str) -> tuple[int, int]:
    """The version in what `nvcc --version` prints. Raises TargetError where it has none."""
    found = re.search(r"release (\d+)\.(\d+)", text)
    if found is None:
        raise TargetError("nvcc does not say its version", where="nvcc --version")
    return int(found[1]), int(found[2])


def measure_gpu(
    gpu: GpuTable, workloads: Iterable[Workload], progress: Progress | None = None
) -> Measured:
    """Time the kernels that the table lacks; the next are compiled meanwhile.

    Raises TargetError where the GPU's memory is full, or a crash takes it from this process.
    """
    wanted = tuple(dict.fromkeys(workloads))
    missing = gpu.table.missing(wanted, 1)
    batches = [missing[begin : begin + BATCH] for begin in range(0, len(missing), BATCH)]

    def make(batch: Sequence[Workload]) -> tuple[list[Kernel], str, bytes]:
        kernels = [kernel_for(w, gpu.target, 1) for w in batch]
        return (kernels, *compiled(kernels, gpu.target))

    with Ahead(batches, make) as ahead:

        def attempt(some: Sequence[Workload]) -> Iterator[Row]:
            return _timed(gpu, *ahead.take(some))

        def time_batch(batch: Sequence[Workload]) -> Iterator[Row]:
            return by_halves(batch, attempt, 1, fatal=(TargetError,))

        return fill(gpu.table, wanted, 1, BATCH, time_batch, progress)


def _timed(gpu: GpuTable, kernels: Sequence[Kernel], source: str, code: bytes) -> Iterator[Row]:
    """The rows of compiled kernels; the GPU is opened anew after one that breaks its context."""
    module = None
    for i, kernel in enumerate(kernels):
        try:
            module = gpu.driver.load(code) if module is None else module
            yield _row(gpu, module, source, i, kernel)
            gpu.driver.free()
        except KernelError as error:
            yield failed_row(kernel.workload, 1, str(error))
            if error.sticky:
                gpu.driver.reopen()
                module = None
    if module is not None:
        gpu.driver.unload(module)


def compiled(kernels: Sequence[Kernel], target: Target) -> tuple[str, bytes]:
    """(CUDA source, machine code) of kernels k0_kernel, … for the target's architecture."""
    from hwprune.lower.cuda.source import cuda_source

    functions = {f"k{i}": kernel.func for i, kernel in enumerate(kernels)}
    source = cuda_source(functions, tvm_target(target))
    assert target.gpu is not None
    return source, compile_cubin(source, target.gpu.architecture).code


def _row(gpu: GpuTable, module: Any, source: str, i: int, kernel: Kernel) -> Row:
    """Time one kernel. Raises KernelError where it does not run, TargetError without memory."""
    from hwprune.lower.cuda.arguments import places
    from hwprune.lower.cuda.source import launch_of

    name, workload, driver = f"k{i}_kernel", kernel.workload, gpu.driver
    launch, sizes = launch_of(kernel.func), tensor_bytes(kernel)
    values = random_values(workload.output.dtype)
    pointers = [driver.allocate(size, values) for size in sizes]
    kinds = places(source, name, len(workload.inputs), len(sizes))
    arguments = [pointers[kind] if isinstance(kind, int) else _OFFSETS[kind](0) for kind in kinds]
    ready = driver.start(module, name, launch.grid, launch.threads, launch.shared_bytes, arguments)
    once_us = driver.replay_us(ready, LAUNCHES[0], 1)[0]
    launches = int(np.clip(GRAPH_US / max(once_us, 1e-3), *LAUNCHES))
    times = driver.replay_us(ready, launches, REPEATS)
    low, median, high = map(float, np.percentile(times, (10, 50, 90)))
    return Row(workload, 1, median, low, high, REPEATS * launches)


def tensor_bytes(kernel: Kernel) -> list[int]:
    """Bytes of the inputs, the packed parameters and the output, in order."""
    workload = kernel.workload
    params = tuple(np.zeros(spec.shape, np.float32) for spec in workload.params)
    packed = [array.nbytes for array in kernel.pack(params)]
    return [*map(_bytes, workload.inputs), *packed, _bytes(workload.output)]


def _bytes(spec: TensorSpec) -> int:
    return numpy_type(spec.dtype).itemsize * prod(spec.physical(1))


@cache
def random_values(dtype: str) -> bytes:
    """Normal values of a type: of zeros a GPU takes less power, and less time."""
    kind = numpy_type(dtype)
    count = SAMPLE_BYTES // kind.itemsize
    return np.random.default_rng(0).standard_normal(count).astype(kind).tobytes()
