"""NVIDIA's driver: the one file that calls it. Kernels are loaded, launched and timed.

In: machine code and how its kernels start. Out: microseconds. The driver API of libcuda.so.1
through ctypes: a driver brings it, so that nothing but our own kernels need be carried to a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hwprune.cuda_errors import STICKY, cuda_error
from hwprune.errors import TargetError

LIBRARY = "libcuda.so.1"
CAPABILITY_MAJOR, CAPABILITY_MINOR, MULTIPROCESSORS = 75, 76, 16  # CUdevice_attribute
MOST_SHARED = 8  # CUfunction_attribute: dynamic shared memory of a block
NON_BLOCKING, RELAXED = 1, 2  # of streams; of captures


class KernelError(Exception):
    """A kernel that cannot be loaded or run; `sticky` says that the GPU must be opened anew."""

    def __init__(self, text: str, *, sticky: bool) -> None:
        super().__init__(text)
        self.sticky = sticky


@dataclass(frozen=True)
class GpuFacts:
    """A GPU as its driver describes it; `driver` is the newest CUDA that it knows (12040: 12.4)."""

    name: str
    architecture: str  # "sm_90"
    multiprocessors: int
    memory_bytes: int
    driver: int


@dataclass(frozen=True)
class Started:
    """A kernel ready to be launched: its function, grid, threads, shared bytes and arguments."""

    function: Any
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    arguments: Any  # of cuLaunchKernel: pointers to the values
    values: tuple[Any, ...]  # what these point to


class Driver:
    """The first GPU, with a context and a stream of its own. Use as a context manager.

    Raises TargetError where there is no driver or no GPU.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._cuda = ctypes.CDLL(library)
        except OSError as error:
            raise TargetError(
                f"no NVIDIA driver: {LIBRARY} is not there",
                where="GPU",
                hint="install the Debian package nvidia-driver, or leave latencies to the model",
            ) from error
        self._call("cuInit", 0)
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self.facts = self._read(device)
        self._device = device
        self._open()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        """Give back what it holds; others in this process may have the same context."""
        for pointer in self._memory:
            self._cuda.cuMemFree_v2(pointer)
        for event in self._events:
            self._cuda.cuEventDestroy_v2(event)
        self._cuda.cuStreamDestroy_v2(self._stream)
        self._cuda.cuDevicePrimaryCtxRelease_v2(self._device)

    def reopen(self) -> None:
        """Begin anew after a sticky error: modules and memory are gone.

        Raises TargetError where the driver wants another process for that.
        """
        self._cuda.cuDevicePrimaryCtxReset_v2(self._device)
        try:
            self._open()
        except KernelError as error:
            raise TargetError(
                f"a kernel crashed, and the GPU is lost to this process: {error}",
                where="GPU",
                hint="what was measured is kept; run it again to go on",
            ) from error

    def _open(self) -> None:
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)
        self._stream = self._made("cuStreamCreate", NON_BLOCKING)
        self._events = [self._made("cuEventCreate", 0) for _ in range(2)]
        self._memory: list[ctypes.c_uint64] = []

    def load(self, code: bytes) -> Any:
        """A module of machine code."""
        return self._made("cuModuleLoadData", code)

    def unload(self, module: Any) -> None:
        """Forget a module."""
        self._call("cuModuleUnload", module)

    def free(self) -> None:
        """Give all memory back."""
        for pointer in self._memory:
            self._call("cuMemFree_v2", pointer)
        self._memory.clear()

    def allocate(self, size_bytes: int, values: bytes) -> ctypes.c_uint64:
        """Device memory filled with `values` over and over. Raises TargetError without room."""
        pointer = ctypes.c_uint64()
        self._call(
            "cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size_bytes, 1)),
            detail=f"{size_bytes / 2**20:.0f} MiB more are needed",
        )  # fmt: skip
        self._memory.append(pointer)
        done = min(len(values), size_bytes)
        self._call("cuMemcpyHtoD_v2", pointer, values, ctypes.c_size_t(done))
        while done < size_bytes:
            more = min(done, size_bytes - done)
            there = ctypes.c_uint64(pointer.value + done)
            self._call("cuMemcpyDtoD_v2", there, pointer, ctypes.c_size_t(more))
            done += more
        return pointer

    def start(
        self, module: Any, name: str, grid: tuple[int, int, int], threads: int, shared_bytes: int,
        values: Sequence[Any],
    ) -> Started:  # fmt: skip
        """A kernel of a module with its arguments, of ctypes."""
        function = self._made("cuModuleGetFunction", module, name.encode())
        if shared_bytes:
            self._call("cuFuncSetAttribute", function, MOST_SHARED, shared_bytes)
        kept = tuple(values)
        pointers = (ctypes.c_void_p * len(kept))(*(ctypes.addressof(value) for value in kept))
        return Started(function, grid, threads, shared_bytes, pointers, kept)

    def replay_us(self, kernel: Started, launches: int, repeats: int) -> list[float]:
        """Microseconds of a launch, `repeats` times the mean of so many in a replayed graph."""
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, RELAXED)
        for _ in range(launches):
            self._launch(kernel)
        self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_uint64(0))
        found = []
        for _ in range(repeats + 1):  # the first is a warm-up
            self._call("cuEventRecord", self._events[0], self._stream)
            self._call("cuGraphLaunch", ready, self._stream)
            self._call("cuEventRecord", self._events[1], self._stream)
            self._call("cuEventSynchronize", self._events[1])
            elapsed_ms = ctypes.c_float()
            self._call("cuEventElapsedTime", ctypes.byref(elapsed_ms), *self._events)
            found.append(1000 * elapsed_ms.value / launches)
        self._call("cuGraphExecDestroy", ready)
        self._call("cuGraphDestroy", graph)
        return found[1:]

    def _launch(self, kernel: Started) -> None:
        block = (kernel.threads, 1, 1)
        self._call(
            "cuLaunchKernel", kernel.function, *kernel.grid, *block, kernel.shared_bytes,
            self._stream, kernel.arguments, None,
        )  # fmt: skip

    def _read(self, device: ctypes.c_int) -> GpuFacts:
        name, version, size = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_size_t()
        self._call("cuDeviceGetName", name, 256, device)
        self._call("cuDriverGetVersion", ctypes.byref(version))
        self._call("cuDeviceTotalMem_v2", ctypes.byref(size), device)
        values = {}
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR, MULTIPROCESSORS):
            value = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
            values[attribute] = value.value
        architecture = f"sm_{values[CAPABILITY_MAJOR]}{values[CAPABILITY_MINOR]}"
        return GpuFacts(
            name.value.decode(), architecture, values[MULTIPROCESSORS], size.value, version.value
        )

    def _made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """What a function writes to its first argument."""
        made = ctypes.c_void_p()
        self._call(name, ctypes.byref(made), *arguments)
        return made

    def _call(self, name: str, *arguments: Any, detail: str = "") -> None:
        """Call the driver. Raises KernelError for a kernel's fault, else TargetError."""
        code = getattr(self._cuda, name)(*arguments)
        if not code:
            return
        text = ctypes.c_char_p()
        with suppress(AttributeError):
            self._cuda.cuGetErrorName(code, ctypes.byref(text))
        error = (text.value or f"error {code}".encode()).decode()
        if error in STICKY:
            raise KernelError(f"{name}: {error}", sticky=True)
        if error in ("CUDA_ERROR_INVALID_VALUE", "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
                     "CUDA_ERROR_NOT_FOUND", "CUDA_ERROR_INVALID_IMAGE"):  # fmt: skip
            raise KernelError(f"{name}: {error}", sticky=False)
        raise cuda_error(error, "GPU", detail)
