"""CUDA source of kernels: TVM's code behind our device functions.

In: scheduled kernels by name and TVM's target. Out: `CudaSource`, which nvcc compiles, and which a
C++ compiler compiles for proofs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune.lower.cuda.emit import LAUNCH
from hwprune.tvm_runtime import compiling, load_tvm

HEADER = Path(__file__).parent / "c" / "hwprune_cuda.h"
HOST_HEADER = Path(__file__).parent / "c" / "hwprune_host.h"
_START = 'extern "C" __global__'


@dataclass(frozen=True)
class Launch:
    """How a kernel starts: blocks in x, y and z, threads of a block, dynamic shared bytes."""

    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int


def header() -> str:
    """The device functions."""
    return HEADER.read_text()


def install_header() -> None:
    """Have TVM put the device functions before the CUDA code that it generates."""
    import tvm_ffi

    def put(code: str, _target: Any) -> str:
        return header() + "\n" + code

    tvm_ffi.register_global_func("tvm_callback_cuda_postproc", put, override=True)


def cuda_source(functions: Mapping[str, Any], target: Any) -> str:
    """The CUDA code of PrimFuncs; the kernel of function f is f_kernel (or f_kernel_1, …)."""
    tvm = load_tvm()
    install_header()
    named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    with compiling(cuda=True):
        module = tvm.compile(tvm.IRModule(named), target=target).mod
    return "\n".join(code_of(module))


def code_of(module: Any) -> list[str]:
    """The CUDA code within a compiled module."""
    found = [module.inspect_source()] if module.kind == "cuda" else []
    for imported in module.imports:
        found += code_of(imported)
    return found


def kernel_code(source: str) -> str:
    """TVM's kernels alone, without what comes before them."""
    return source[source.index(_START) :]


def launch_of(function: Any) -> Launch:
    """How the kernel of a PrimFunc of our rules starts."""
    blocks, groups, threads, shared_bytes = map(int, function.attrs[LAUNCH])
    return Launch((blocks, groups, 1), threads, shared_bytes)


def parameters_of(source: str, kernel: str) -> list[tuple[str, str]]:
    """(name, C type) of the parameters of a kernel, in order."""
    found = re.search(rf"{kernel}\(([^)]*)\) {{", source)
    assert found is not None, kernel
    parts = [part.strip().rpartition(" ") for part in found[1].split(",")]
    return [(name, kind.replace("__restrict__", "").strip()) for kind, _, name in parts]
