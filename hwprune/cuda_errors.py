"""What CUDA's errors mean to a user: no driver, too old, the wrong GPU, out of memory.

In: the name of a driver's error, or the text of a runtime's. Out: a `TargetError` that says what to
do. Names and numbers are those of `CUresult` in NVIDIA's CUDA Driver API.
"""

from __future__ import annotations

import re

from hwprune.errors import TargetError

# By CUresult's name: what is wrong, what to do.
MEANING = {
    "CUDA_ERROR_OUT_OF_MEMORY": ("the GPU is out of memory", "a smaller --batch"),
    "CUDA_ERROR_NO_DEVICE": ("the NVIDIA driver finds no GPU", "see nvidia-smi"),
    "CUDA_ERROR_STUB_LIBRARY": (
        "libcuda.so.1 is the toolkit's stub, not a driver",
        "take its folder out of LD_LIBRARY_PATH, or install the Debian package nvidia-driver",
    ),
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": (
        "the NVIDIA driver's library is not of the version of its kernel module",
        "restart the machine after an update of the driver",
    ),
    "CUDA_ERROR_NO_BINARY_FOR_GPU": (
        "the kernels are compiled for another architecture than this GPU's",
        "choose the target of this GPU: hwprune targets",
    ),
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": (
        "the NVIDIA driver is older than the toolkit that compiled the kernels",
        "a newer driver, or an older nvcc",
    ),
    "CUDA_ERROR_DEVICE_UNAVAILABLE": (
        "another process has the GPU for itself",
        "end it, or see nvidia-smi for the compute mode",
    ),
}
STICKY = (  # after these the context is of no use
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
)
# The runtime's words for the same.
_WORDS = {
    r"out of memory|cudaErrorMemoryAllocation": "CUDA_ERROR_OUT_OF_MEMORY",
    r"no CUDA-capable device|cudaErrorNoDevice": "CUDA_ERROR_NO_DEVICE",
    r"no kernel image is available|cudaErrorNoKernelImageForDevice": "CUDA_ERROR_NO_BINARY_FOR_GPU",
    r"driver version is insufficient|unsupported toolchain|cudaErrorInsufficientDriver": (
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"
    ),
}


def cuda_error(name: str, where: str, detail: str = "") -> TargetError:
    """The error of a driver's error name; `detail` is added to what is wrong."""
    what, hint = MEANING.get(name, (f"the NVIDIA driver says {name}", ""))
    return TargetError(f"{what}: {detail}" if detail else what, where=where, hint=hint)


def explained(text: str, where: str) -> TargetError | None:
    """What a text of CUDA's runtime or TVM's means; None where it tells of nothing known."""
    named = re.search(r"CUDA_ERROR_\w+", text)
    if named is not None:
        return cuda_error(named[0], where)
    for words, name in _WORDS.items():
        if re.search(words, text, re.IGNORECASE):
            return cuda_error(name, where)
    return None


def too_old(driver: int, toolkit: tuple[int, int]) -> TargetError | None:
    """The error of a driver of an older generation than the toolkit's; None where it will do.

    `driver` is the newest CUDA that it knows as cuDriverGetVersion gives it (12040 for 12.4).
    Machine code of a toolkit runs on every driver of its major version (CUDA Compatibility).
    """
    known = (driver // 1000, driver % 1000 // 10)
    if known[0] >= toolkit[0]:
        return None
    return TargetError(
        f"the NVIDIA driver knows CUDA {known[0]}.{known[1]}, "
        f"the kernels are compiled by CUDA {toolkit[0]}.{toolkit[1]}",
        where="nvcc",
        hint=f"a newer driver, or an nvcc of CUDA {known[0]}",
    )
