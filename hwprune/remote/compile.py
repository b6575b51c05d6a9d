"""Libraries for a board: the driver, and kernels; cross-compiled, never loaded here.

Out: paths of shared libraries in a directory of the caller's.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hwprune.errors import HwpruneError, LoweringError, ToolchainError
from hwprune.lower.build import compile_kernels
from hwprune.lower.spec import Workload
from hwprune.remote.plan import LaunchPlan, launch_plan
from hwprune.target import Target
from hwprune.toolchain import COMPILERS, linker
from hwprune.tvm_runtime import load_tvm

DRIVER = Path(__file__).with_name("driver.c")


@dataclass(frozen=True)
class Batch:
    """Kernels in one library, and how the driver launches them."""

    workloads: tuple[Workload, ...]
    library: Path
    plan: LaunchPlan


def compiler(target: Target) -> str:
    """The compiler and linker of a target's libraries. Raises ToolchainError if it is missing."""
    return linker(target) or next(name for name in COMPILERS if shutil.which(name))


def build_driver(target: Target, directory: Path) -> Path:
    """Compile `driver.c`. Raises ToolchainError where the compiler cannot."""
    from tvm_ffi import libinfo

    output = directory / "driver.so"
    includes = {libinfo.find_include_path(), libinfo.find_dlpack_include_path()}
    command = [
        compiler(target), "-x", "c", "-std=gnu11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden",
        *(f"-I{path}" for path in sorted(includes)), str(DRIVER), "-o", str(output),
        "-pthread", "-ldl",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise ToolchainError(f"cannot compile the driver: {said}", where=command[0])
    return output


def build_batch(
    workloads: Sequence[Workload], target: Target, threads: int, library: Path
) -> Batch:
    """Compile kernels into `library`. Raises LoweringError where TVM or the linker cannot."""
    kernels, executable = compile_kernels(workloads, target, threads)
    plan = launch_plan(workloads, kernels, target)
    cc = load_tvm().support.cc
    try:
        executable.export_library(str(library), fcompile=cc.cross_compiler(compiler(target)))
    except HwpruneError:
        raise
    except Exception as error:
        raise LoweringError(f"cannot link the kernels: {error}", where=str(library)) from error
    return Batch(tuple(workloads), library, plan)
