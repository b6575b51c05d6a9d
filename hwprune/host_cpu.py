"""What the CPU that runs this process can do, read from `/proc` and `/sys`.

Out: `CpuFacts`, which `target.py` turns into the target "host". The file system root is an
argument so that other machines' trees can be read too.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

# Linux's flag names -> LLVM's feature names, for the instructions a compiler may emit.
X86_FEATURES: dict[str, str] = {
    "ssse3": "ssse3",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "popcnt": "popcnt",
    "movbe": "movbe",
    "abm": "lzcnt",
    "bmi1": "bmi",
    "bmi2": "bmi2",
    "f16c": "f16c",
    "fma": "fma",
    "avx": "avx",
    "avx2": "avx2",
    "avx_vnni": "avxvnni",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512_vbmi2": "avx512vbmi2",
    "avx512_vnni": "avx512vnni",
    "avx512_bitalg": "avx512bitalg",
    "avx512_vpopcntdq": "avx512vpopcntdq",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
    "gfni": "gfni",
    "vaes": "vaes",
    "vpclmulqdq": "vpclmulqdq",
    "amx_tile": "amx-tile",
    "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16",
}
ARM_FEATURES: dict[str, str] = {
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "asimdrdm": "rdm",
    "atomics": "lse",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}


@dataclass(frozen=True)
class CpuFacts:
    """A CPU as its operating system describes it; None where that does not say."""

    machine: str  # "x86_64", "aarch64", …
    model: str
    flags: frozenset[str]  # Linux's names: `flags` on x86, `Features` on Arm
    cores: int  # those this process may use
    clock_hz: float | None
    l1d_bytes: int | None
    l2_bytes: int | None
    l3_bytes: int | None


def read_cpu(root: Path = Path("/"), machine: str | None = None) -> CpuFacts:
    """Read the CPU of this machine, or of the file system under `root`."""
    text = _read(root / "proc/cpuinfo")
    caches = _caches(root / "sys/devices/system/cpu/cpu0/cache")
    return CpuFacts(
        machine=machine or platform.machine(),
        model=_field(text, ("model name", "Hardware", "CPU part")) or "unknown",
        flags=frozenset((_field(text, ("flags", "Features")) or "").split()),
        cores=len(os.sched_getaffinity(0)),
        clock_hz=_clock_hz(root, text),
        l1d_bytes=caches.get(1),
        l2_bytes=caches.get(2),
        l3_bytes=caches.get(3),
    )


def vector_unit(facts: CpuFacts) -> tuple[int, int]:
    """(bits, registers) of the widest vector unit that TVM generates code for."""
    if facts.machine in ("aarch64", "arm64"):
        return (128, 32)
    if {"avx512f", "avx512vl"} <= facts.flags:
        return (512, 32)
    if {"avx2", "fma"} <= facts.flags:
        return (256, 16)
    return (128, 16)


def features(facts: CpuFacts) -> dict[str, str]:
    """The code-generation features this CPU has: Linux's name -> LLVM's."""
    known = ARM_FEATURES if facts.machine in ("aarch64", "arm64") else X86_FEATURES
    return {linux: llvm for linux, llvm in known.items() if linux in facts.flags}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _field(cpuinfo: str, names: tuple[str, ...]) -> str | None:
    """The value of the first of these fields that the first processor has."""
    for name in names:
        found = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
        if found:
            return found.group(1).strip()
    return None


def _clock_hz(root: Path, cpuinfo: str) -> float | None:
    highest = _read(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").strip()
    if highest.isdigit():
        return int(highest) * 1e3
    mhz = _field(cpuinfo, ("cpu MHz",))
    return float(mhz) * 1e6 if mhz else None


def _caches(directory: Path) -> dict[int, int]:
    """Bytes of the data (or unified) cache of each level."""
    sizes: dict[int, int] = {}
    for index in sorted(directory.glob("index*")):
        size = re.fullmatch(r"(\d+)([KMG]?)", _read(index / "size").strip())
        level = _read(index / "level").strip()
        if size and level.isdigit() and _read(index / "type").strip() in ("Data", "Unified"):
            scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[size.group(2)]
            sizes[int(level)] = int(size.group(1)) * scale
    return sizes
