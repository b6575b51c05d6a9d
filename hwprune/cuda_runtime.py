"""TVM's CUDA runtime: is a GPU there, and the machine code that it is given for a source.

In: an architecture, and a cubin beside a library. TVM hands every network's CUDA source to a
callback when the library is loaded; ours answers with the code that was compiled with the library,
so that neither a compiler nor torch is needed where the network runs.
"""

from __future__ import annotations

import hashlib
from typing import Any

from hwprune.cuda_errors import explained
from hwprune.errors import ArtifactError
from hwprune.tvm_runtime import load_tvm

CALLBACK = "tvm_callback_cuda_compile"
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


def gpu_architecture() -> str | None:
    """The first GPU's ("sm_90"); None where there is no GPU, or no driver that runs it."""
    load_tvm()
    device = load_tvm().cuda(0)
    try:
        if not device.exist:
            return None
        major, minor = str(device.compute_version).split(".")
    except Exception:
        return None
    return f"sm_{major}{minor}"


def check_gpu(architecture: str, where: str) -> None:
    """Raise ArtifactError unless a GPU of this architecture is there."""
    found = gpu_architecture()
    if found is None:
        raise ArtifactError(
            "no NVIDIA GPU can be used here",
            where=where,
            hint="nvidia-smi says whether there is one, and a driver for it; TVM needs libcuda.so",
        )
    if found != architecture:
        raise ArtifactError(
            f"is for {architecture}, this GPU is {found}",
            where=where,
            hint="compile it for this GPU",
        )


def hint_of(error: Exception, otherwise: str) -> str:
    """What to do about an error of CUDA's."""
    found = explained(str(error), "")
    return found.hint if found is not None and found.hint else otherwise
