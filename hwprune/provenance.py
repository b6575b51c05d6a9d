"""Where a latency comes from: the machine, the toolchain, and the version of the schedules.

Out: `Provenance`, the part of a latency table's key that is not the kernel itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hwprune.host_cpu import CpuFacts, read_cpu
from hwprune.target import Mcu, Target


@dataclass(frozen=True)
class Provenance:
    """What a measurement is valid for.

    `fingerprint` names the machine, `toolchain` the compiler and the target it was given,
    `schedule` the sources of our schedules; `versions` is for people.
    """

    fingerprint: str
    toolchain: str
    schedule: str
    versions: str


def provenance_of(target: Target) -> Provenance:
    """The provenance of measurements made on this machine for `target`.

    Of a microcontroller they are an emulated board's and the same on every machine.
    """
    if target.mcu is not None:
        return _emulated(target, target.mcu)
    options = {
        "tvm": target.tvm_target,
        "lanes": target.lanes,
        "registers": target.vector_registers,
        "caches": [target.l1d_bytes, target.l2_bytes, target.l3_bytes],
    }
    digest = _digest([json.dumps(options, sort_keys=True)])
    compiler = f"tvm {_version('apache-tvm')}"
    return Provenance(
        fingerprint=device_fingerprint(read_cpu()),
        toolchain=f"{compiler} {target.name} {digest}",
        schedule=_gpu_schedules() if target.gpu is not None else schedule_version(),
        versions=f"hwprune {_version('hwprune')}, {compiler}",
    )


def _gpu_schedules() -> str:
    """Of GPUs: not of the schedule rules for other devices; with nvcc's options.

    A table that ships outlives changes to kernels of CPUs and microcontrollers.
    """
    folder = Path(__file__).resolve().parent / "lower"
    shared = sorted(file.relative_to(folder.parent).as_posix() for file in folder.glob("*.py"))
    return _sources(*shared, "lower/cuda", "nvcc.py", "tvm_runtime.py")


def _emulated(target: Target, mcu: Mcu) -> Provenance:
    """That of kernels for a microcontroller, which run on its emulated board."""
    compiler = f"{mcu.prefix}gcc {_gcc_version(mcu.prefix)}, tvm {_version('apache-tvm')}"
    options = _digest([json.dumps([mcu.flags, target.isa, mcu.clock_hz])])
    return Provenance(
        fingerprint=f"emulator-{mcu.machine}-{_digest([mcu.machine, mcu.core])}",
        toolchain=f"{compiler} {target.name} {options}",
        schedule=_sources("lower/mcu", "emulator", "mcu_price/kernels.py", "mcu_price/program.py"),
        versions=f"hwprune {_version('hwprune')}, {compiler}, cycles by the model of {mcu.core}",
    )


@cache
def _gcc_version(prefix: str) -> str:
    """The version of a GCC, by its prefix."""
    path = shutil.which(prefix + "gcc")
    if path is None:
        return "unknown"
    done = subprocess.run([path, "-dumpfullversion"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def device_fingerprint(facts: CpuFacts, *more: str) -> str:
    """A name for a kind of machine: its CPU, features, caches and `more` (not its host name)."""
    parts = [facts.machine, facts.model, " ".join(sorted(facts.flags))]
    parts += [str(size) for size in (facts.l1d_bytes, facts.l2_bytes, facts.l3_bytes)]
    parts += more
    return f"{facts.machine}-{_digest(parts)}"


@cache
def schedule_version() -> str:
    """A hash of the sources that turn a workload into code, and say how TVM compiles it."""
    return _sources("lower", "tvm_runtime.py")


@cache
def _sources(*names: str) -> str:
    """A hash of the Python and C in these parts of the package."""
    root = Path(__file__).resolve().parent
    parts = [root / name for name in names]
    files = [f for part in parts for f in ([part] if part.is_file() else part.rglob("*"))]
    code = sorted(f for f in files if f.suffix in (".py", ".c", ".h"))
    return _digest(f"{file.relative_to(root)}\n{file.read_text()}" for file in code)


def cache_directory() -> Path:
    """Where tables are kept: HWPRUNE_CACHE, else the user's cache directory."""
    own = os.environ.get("HWPRUNE_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hwprune"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
