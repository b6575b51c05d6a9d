"""CUDA kernels run by a C++ compiler, block by block: proofs where there is no GPU.

In: scheduled kernels. Out: functions on NumPy arrays. The source is the one that nvcc compiles;
only device functions that are instructions of a GPU are replaced by what these are defined to do.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hwprune.errors import ToolchainError
from hwprune.lower.cuda.source import (
    HEADER,
    HOST_HEADER,
    Launch,
    cuda_source,
    kernel_code,
    launch_of,
    parameters_of,
)
from hwprune.lower.kernels import tvm_target
from hwprune.lower.spec import Kernel, numpy_type
from hwprune.target import Target

COMPILER = "g++"


class EmulatedKernels:
    """Kernels as C++: `run(i, arrays)` with physical inputs and packed parameters."""

    def __init__(self, kernels: Sequence[Kernel], target: Target) -> None:
        """Raises ToolchainError where there is no g++."""
        self.kernels = tuple(kernels)
        functions = {f"k{i}": kernel.func for i, kernel in enumerate(kernels)}
        code = kernel_code(cuda_source(functions, tvm_target(target)))
        self._folder = tempfile.TemporaryDirectory(prefix="hwprune-cuda-")
        self._library = _compile(host_source(code, self.kernels), Path(self._folder.name))

    def run(self, i: int, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The physical output of kernel i, in its own dtype; NaN where it wrote nothing."""
        spec = self.kernels[i].workload.output
        output = np.empty(spec.physical(1), numpy_type(spec.dtype))
        output.view(np.uint8)[...] = 0xFF
        held = [*map(np.ascontiguousarray, arrays), output]
        pointers = (ctypes.c_void_p * len(held))(*(a.ctypes.data for a in held))
        getattr(self._library, f"run_k{i}")(pointers)
        return output


def host_source(code: str, kernels: Sequence[Kernel]) -> str:
    """C++ of kernels k0_kernel, …: run_ki(pointers) in the order inputs, parameters, output."""
    shared = re.compile(r"extern __shared__ __align__\(\d+\) (\w+) (\w+)\[\];")
    code = shared.sub(r"\1* \2 = (\1*)hwp_dynamic;", code)
    parts = [HOST_HEADER.read_text(), HEADER.read_text(), code]
    for i, kernel in enumerate(kernels):
        inputs, count = len(kernel.workload.inputs), len(kernel.func.params)
        parts.append(_runner(i, launch_of(kernel.func), code, inputs, count))
    return "\n".join(parts)


def _runner(i: int, launch: Launch, code: str, inputs: int, count: int) -> str:
    """A function that launches kernel i, which takes so many tensors; every offset is zero."""
    arguments = []
    for name, kind in parameters_of(code, f"k{i}_kernel"):
        place = re.fullmatch(r"([xpy])(\d*)(?:_flat)?(?:_ptr)?", name)
        if place is None:
            arguments.append("0")
            continue
        number = int(place[2] or 0) + {"x": 0, "p": inputs, "y": count - 1}[place[1]]
        arguments.append(f"({kind})hwp_pointers_{i}[{number}]")
    x, y, z = launch.grid
    lines = [
        f"static void* hwp_pointers_{i}[{count}];",
        f"static void hwp_body_{i}() {{ k{i}_kernel({', '.join(arguments)}); }}",
        f'extern "C" void run_k{i}(void** pointers) {{',
        f"  for (int i = 0; i < {count}; ++i) hwp_pointers_{i}[i] = pointers[i];",
        f"  hwp_launch(hwp_body_{i}, {x}, {y}, {z}, {launch.threads});",
        "}",
    ]
    return "\n".join(lines)


def _compile(text: str, folder: Path) -> ctypes.CDLL:
    source, library = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text(text)
    command = [COMPILER, "-std=c++17", "-O0", "-w", "-fno-strict-aliasing", "-shared", "-fPIC"]
    try:
        done = subprocess.run(
            [*command, str(source), "-o", str(library)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise ToolchainError(
            f"{COMPILER} is not there", where="PATH", hint="install the Debian package g++"
        ) from None
    if done.returncode:
        raise ToolchainError(f"{COMPILER} cannot compile a kernel: {done.stderr[:2000]}")
    return ctypes.CDLL(str(library))
