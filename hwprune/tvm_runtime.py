"""The one place that imports TVM: without torch unless torch is there already, with a thread count.

Importing `tvm` imports torch if it can, which costs seconds and hundreds of megabytes; an
artifact must load with NumPy and TVM alone. TVM reads `TVM_NUM_THREADS` at import.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

from hwprune.errors import ToolchainError

_one_at_a_time = threading.RLock()  # of threads that generate CUDA code


def load_tvm() -> ModuleType:
    """Import and return `tvm`. Raises ToolchainError if it is not installed."""
    if "tvm" in sys.modules:
        return sys.modules["tvm"]
    os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    hide_torch = "torch" not in sys.modules
    if hide_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("tvm")
    except ImportError as error:
        raise ToolchainError(
            f"TVM cannot be imported: {error}", hint="pip install apache-tvm"
        ) from error
    finally:
        if hide_torch and sys.modules.get("torch", 0) is None:
            del sys.modules["torch"]


@contextmanager
def compiling(*, cuda: bool = False) -> Iterator[None]:
    """The context in which kernels are compiled: TVM's passes without storage rewrite and checks.

    That pass drops the annotation that keeps register tiles off the heap; every tile would be
    allocated and freed, and stored after each multiply-add where a prefetch stands between. The
    checks, of every field of every argument of a kernel, are half of its code and of the time in
    which it is made: arguments are what the network says, whose own inputs are still checked.
    """
    config: dict[str, Any] = {"tirx.disable_storage_rewrite": True, "tirx.disable_assert": True}
    if cuda:
        config["relax.backend.use_cuda_graph"] = True
        config["tirx.UnrollLoop"] = {"explicit_unroll": False}  # nvcc unrolls, and far faster
    with load_tvm().transform.PassContext(opt_level=3, config=config):
        with _source_alone() if cuda else nullcontext():
            yield


@contextmanager
def _source_alone() -> Iterator[None]:
    """Have TVM leave CUDA kernels as source, as it does where its CUDA runtime is not loaded.

    Where it is, TVM would compile them with NVRTC of another package, and artifacts would depend on
    whether a GPU is in the machine that makes them.
    """
    load_tvm()
    import tvm_ffi

    name = "ffi.Module.create.cuda"
    with _one_at_a_time:
        found = tvm_ffi.get_global_func(name, allow_missing=True)
        if found is not None:
            tvm_ffi.registry.remove_global_func(name)
        try:
            yield
        finally:
            if found is not None:
                tvm_ffi.register_global_func(name, found, override=True)


def set_threads(threads: int) -> None:
    """Size TVM's thread pool to `threads` (affinity mode 1: the biggest cores first)."""
    load_tvm().get_global_func("runtime.config_threadpool")(1, threads)
