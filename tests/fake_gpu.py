"""A machine with an NVIDIA GPU, as far as programs see: a driver and a runtime that only count.

Kernels compute nothing; each takes a microsecond and one for every 64 threads, on a clock that
stands still otherwise.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
DRIVER = "libcuda.so.1"


def make_driver(folder: Path, name: str = DRIVER) -> Path:
    """Compile tests/fake_cuda.c to a driver's library; returns it.

    Under its usual name it is found by all that looks for a driver in the same process.
    """
    made = folder / name
    _library(made, [HERE / "fake_cuda.c"], [])
    return made


def make_runtime(folder: Path) -> Path:
    """The same of tests/fake_cudart.c, of the version that TVM asks for, beside the driver."""
    made = folder / runtime_name()
    versions = folder / "versions.map"
    versions.write_text(f"{made.name} {{ global: *; }};\n")
    options = [f"-Wl,--version-script,{versions}", "-Wl,-rpath,$ORIGIN"]
    _library(made, [HERE / "fake_cudart.c", "-x", "none", folder / DRIVER], options)
    return made


def runtime_name() -> str:
    """libcudart.so.NUMBER, as TVM's CUDA runtime names it."""
    from hwprune.cuda_runtime import _runtime_library

    found = re.search(rb"libcudart\.so\.\d+", _runtime_library().read_bytes())
    assert found is not None
    return found[0].decode()


def _library(made: Path, sources: list[str | Path], options: list[str]) -> None:
    command = ["g++", "-shared", "-fPIC", "-w", f"-Wl,-soname,{made.name}", *options]
    subprocess.run([*command, "-x", "c", *sources, "-o", made], check=True)


def run_there(code: str, libraries: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the loader finds the libraries in these folders."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, text=True, check=False, cwd=HERE.parent,
        env=_environment(libraries) | environment,
    )  # fmt: skip


def _environment(libraries: str) -> Mapping[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": libraries}
