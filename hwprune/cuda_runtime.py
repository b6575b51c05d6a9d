"""TVM's CUDA runtime: is a GPU there, and the machine code that it is given for a source.

In: an architecture, and a cubin beside a library. TVM hands every network's CUDA source to a
callback when the library is loaded; ours answers with the code that was compiled with the library,
so that neither a compiler nor torch is needed where the network runs.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from hwprune.cuda_driver import Driver, KernelError
from hwprune.cuda_errors import explained, too_old
from hwprune.errors import ArtifactError, HwpruneError
from hwprune.nvcc import toolkits
from hwprune.tvm_runtime import load_tvm

CALLBACK = "tvm_callback_cuda_compile"
RUNTIME = "libtvm_runtime_cuda.so"
_compiled: dict[str, bytes] = {}
_before: list[Any] = []  # the callback that was there before ours


def digest(source: str) -> str:
    """What a CUDA source is known by."""
    return hashlib.sha256(source.encode()).hexdigest()


def answer_with(key: str, cubin: bytes) -> None:
    """Have TVM take `cubin` for the CUDA source of this digest."""
    import tvm_ffi

    _compiled[key] = cubin
    if _before:
        return
    found = tvm_ffi.get_global_func(CALLBACK, allow_missing=True)
    _before.append(found)

    def compiled(source: str) -> Any:
        code = _compiled.get(digest(source))
        if code is not None:
            return code
        if found is None:
            raise RuntimeError("no CUDA compiler for this source")
        return found(source)

    tvm_ffi.register_global_func(CALLBACK, compiled, override=True)


@cache
def missing_runtime() -> str:
    """Load TVM's CUDA runtime; empty, or why it cannot be.

    TVM leaves it out without a word where the loader does not find libcudart, as that of a package
    from PyPI: it is loaded from there first.
    """
    load_tvm()
    import tvm_ffi

    if tvm_ffi.get_global_func("device_api.cuda", allow_missing=True) is not None:
        return ""
    for file in (f for folder in toolkits() for f in sorted(folder.glob("lib*/libcudart.so.*"))):
        with suppress(OSError):
            ctypes.CDLL(str(file))
    try:
        ctypes.CDLL(str(_runtime_library()))
    except OSError as error:
        return str(error)
    return ""


def _runtime_library() -> Path:
    load_tvm()
    from tvm.libinfo import package_lib_paths

    files = [folder / RUNTIME for folder in package_lib_paths()]
    return next((file for file in files if file.is_file()), files[0])


def gpu_architecture() -> str | None:
    """The first GPU's ("sm_90"); None where there is no GPU, or no driver that runs it."""
    if missing_runtime():
        return None
    device = load_tvm().cuda(0)
    try:
        if not device.exist:
            return None
        major, minor = str(device.compute_version).split(".")
    except Exception:
        return None
    return f"sm_{major}{minor}"


def gpu_brief() -> tuple[str, int]:
    """(name, multiprocessors) of the first GPU, which is there."""
    device = load_tvm().cuda(0)
    return str(device.device_name), int(device.multi_processor_count)


def check_gpu(architecture: str, where: str) -> None:
    """Raise ArtifactError unless a GPU of this architecture is there, and can be used."""
    found = gpu_architecture()
    if found is None:
        raise _none_usable(where)
    if found != architecture:
        raise ArtifactError(
            f"is for {architecture}, this GPU is {found}",
            where=where,
            hint="compile it for this GPU",
        )


def why_not_here(architecture: str) -> str:
    """Why this machine does not run code of an architecture; empty where it does."""
    try:
        check_gpu(architecture, "")
    except ArtifactError as error:
        return error.what
    return ""


def _none_usable(where: str) -> ArtifactError:
    """Why no GPU can be used: no driver, or one that is too old; no CUDA runtime of TVM's."""
    try:
        with Driver() as driver:
            known = driver.facts.driver
    except (HwpruneError, KernelError) as error:
        hint = error.hint if isinstance(error, HwpruneError) else "see nvidia-smi"
        what = error.what if isinstance(error, HwpruneError) else str(error)
        return ArtifactError(what, where=where, hint=hint)
    missing = missing_runtime()
    if missing:
        return ArtifactError(
            f"TVM's CUDA runtime cannot be loaded: {missing}",
            where=where,
            hint="pip install nvidia-cuda-runtime, or add CUDA's lib folder to LD_LIBRARY_PATH",
        )
    old = too_old(known, _runtime_version())
    if old is not None:
        return ArtifactError(f"TVM's CUDA runtime: {old.what}", where=where, hint=old.hint)
    return ArtifactError("no NVIDIA GPU can be used here", where=where, hint="see nvidia-smi")


def _runtime_version() -> tuple[int, int]:
    """The CUDA that TVM's runtime is made with, by the library that it names: (13, 0)."""
    named = re.search(rb"libcudart\.so\.(\d+)", _runtime_library().read_bytes())
    return (int(named[1]) if named else 0), 0


def hint_of(error: Exception, otherwise: str) -> str:
    """What to do about an error of CUDA's."""
    found = explained(str(error), "")
    return found.hint if found is not None and found.hint else otherwise
