"""NVIDIA's compiler: found, or named by its package; what it says of every kernel.

In: CUDA source and an architecture. Out: `Cubin`, machine code with the registers, shared memory
and spills of its kernels, as ptxas reports them.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hwprune.errors import LoweringError, ToolchainError

HINT = "install Debian's nvidia-cuda-toolkit, or `pip install 'hwprune[cuda]'`"
REGISTER_LIMIT = 255  # of a thread, on every architecture since sm_35
FLAGS = ("-std=c++17", "-O3", "--resource-usage", "-diag-suppress=177,550,1650")


@dataclass(frozen=True)
class Resources:
    """What a kernel takes: registers of a thread; bytes of static shared memory and of spills."""

    registers: int
    shared_bytes: int
    spill_bytes: int
    stack_bytes: int


@dataclass(frozen=True)
class Cubin:
    """Machine code for one architecture, and what its kernels take, by name."""

    code: bytes
    kernels: Mapping[str, Resources]


def find_nvcc() -> str:
    """The compiler on PATH, under CUDA_HOME, or of the PyPI package nvidia-cuda-nvcc.

    Raises ToolchainError where there is none.
    """
    programs = (folder / "bin" / "nvcc" for folder in toolkits())
    found = shutil.which("nvcc") or next((str(file) for file in programs if file.is_file()), None)
    if found is None:
        raise ToolchainError("no CUDA compiler: nvcc is not there", where="PATH", hint=HINT)
    return found


def toolkits() -> list[Path]:
    """Where a CUDA toolkit or parts of one may be: CUDA_HOME, and NVIDIA's packages from PyPI."""
    found = [Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
    package = importlib.util.find_spec("nvidia")
    for folder in (package.submodule_search_locations or ()) if package else ():
        found += sorted(Path(folder).glob("cu*"), reverse=True)
    return found


def compile_cubin(source: str, architecture: str, *, ptx: bool = False) -> Cubin:
    """Compile to machine code (or PTX) for "sm_90" and the like.

    Raises ToolchainError without a compiler, LoweringError where it refuses the architecture or
    the source.
    """
    kind = "ptx" if ptx else "cubin"
    with tempfile.TemporaryDirectory(prefix="hwprune-nvcc-") as name:
        folder = Path(name)
        (folder / "kernels.cu").write_text(source)
        arch = architecture.replace("sm_", "compute_") if ptx else architecture
        command = [find_nvcc(), *FLAGS, f"-arch={arch}", f"-{kind}", "kernels.cu", "-o", kind]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise _refused(done.stdout + done.stderr, architecture)
        return Cubin((folder / kind).read_bytes(), read_resources(done.stdout + done.stderr))


def _refused(text: str, architecture: str) -> LoweringError:
    if "Unsupported gpu architecture" in text or "is not defined for option" in text:
        return LoweringError(
            f"nvcc does not compile for {architecture}",
            hint="a newer toolkit knows newer GPUs, an older one older ones",
        )
    lines = [line for line in text.splitlines() if "error" in line] or text.splitlines()
    return LoweringError(f"nvcc cannot compile a kernel: {lines[0] if lines else 'no message'}")


def read_resources(text: str) -> dict[str, Resources]:
    """The kernels of ptxas's report."""
    found = {}
    for part in re.split(r"Compiling entry function ", text)[1:]:
        name = re.match(r"'(\w+)'", part)
        assert name is not None
        found[name[1]] = Resources(
            registers=_number(r"Used (\d+) registers", part),
            shared_bytes=_number(r"(\d+) bytes smem", part),
            spill_bytes=_number(r"(\d+) bytes spill stores", part)
            + _number(r"(\d+) bytes spill loads", part),
            stack_bytes=_number(r"(\d+) bytes stack frame", part),
        )
    return found


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0
