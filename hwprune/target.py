"""`Target`: what hwprune knows about a device, loaded from `targets/<name>/target.toml`.

The schema is described in `docs/targets.md`; `target_schema.py` checks it. The target "host" is
filled in from the CPU that this process runs on.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hwprune.errors import TargetError
from hwprune.gpu import Gpu, read_gpu
from hwprune.host_cpu import ARM_FEATURES, X86_FEATURES, CpuFacts, read_cpu
from hwprune.host_target import detected, llvm_features
from hwprune.target_schema import read_toml

FILE = "target.toml"
FLOAT32, FLOAT16, BFLOAT16 = "float32", "float16", "bfloat16"
TF32 = "tf32"  # float32 in memory; products of factors with 10 bits of mantissa
MCU_NEEDS = {
    "mcu": ("core", "prefix", "flags"),
    "memory": ("sram_bytes", "flash_bytes"),
    "cores": ("clock_hz",),
}
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}  # other names of the same


@dataclass(frozen=True)
class Energy:
    """Energy per multiply-accumulate and per byte moved to or from memory, with the source."""

    pj_per_mac: float
    pj_per_byte: float
    source: str


@dataclass(frozen=True)
class Core:
    """What one core starts in a cycle: what a latency model and the choice of tiles need.

    `fma_per_cycle` and `loads_per_cycle` count whole vector registers (`isa.vector_bits`);
    `fma_latency_cycles` is from one multiply-add to the next that adds to its result.
    `lane_operand`: a multiply-add takes one lane of a register, so that a broadcast is free.
    `mca_cpu` is the CPU by whose model LLVM's machine-code analyser knows the core, "" if by none.
    """

    fma_per_cycle: float
    fma_latency_cycles: float
    loads_per_cycle: float
    issue_width: int
    in_order: bool
    lane_operand: bool = False
    mca_cpu: str = ""


@dataclass(frozen=True)
class Mcu:
    """What compiles for a microcontroller and what emulates it.

    `prefix` is that of GCC's programs, `machine` the emulated board ("" for none); the origins are
    addresses in the device's memory map.
    """

    core: str
    prefix: str
    flags: tuple[str, ...]
    machine: str
    flash_origin: int
    sram_origin: int
    flash_bytes: int
    sram_bytes: int
    clock_hz: float


@dataclass(frozen=True)
class Target:
    """A device. Sizes in bytes, rates per second, clocks in Hz; None where unknown."""

    name: str
    description: str
    kind: str  # "cpu" | "cuda" | "mcu"
    tvm_target: dict[str, Any]  # TVM's target as a dict, e.g. {"kind": "llvm", "mcpu": ...}
    isa: tuple[str, ...]  # instruction-set features by Linux's names, e.g. ("avx2", "fma")
    vector_bits: int
    vector_registers: int
    cores: int
    clock_hz: float | None = None
    l1d_bytes: int | None = None
    l2_bytes: int | None = None
    l3_bytes: int | None = None
    memory_bytes_per_s: float | None = None
    sram_bytes: int | None = None
    flash_bytes: int | None = None
    energy: Energy | None = None
    core: Core | None = None
    board: tuple[str, ...] = ()  # what to know about the board, for people
    sources: tuple[str, ...] = ()  # where the numbers come from
    channel_alignment: int = 1  # widths worth trying are multiples of this
    toolchain: str = ""
    runner: str = "local"
    mcu: Mcu | None = None  # for kind "mcu"
    gpu: Gpu | None = None  # for kind "cuda"
    dtype: str = FLOAT32  # in which networks are computed for it: see `hwprune.dtype`

    @property
    def storage(self) -> str:
        """The type of values and weights in memory: `dtype`, or float32 for TF32."""
        return FLOAT32 if self.dtype == TF32 else self.dtype

    @property
    def lanes(self) -> int:
        """Elements of `dtype` in a vector register: the block of the packed layout."""
        return self.vector_bits // (16 if self.dtype == FLOAT16 else 32)


def load_target(name: str) -> Target:
    """The target of this name; "host" is detected.

    Raises TargetError if there is none (suggesting the nearest) or its file is invalid.
    """
    files = _target_files()
    if name not in files:
        near = difflib.get_close_matches(name, files, n=1, cutoff=0.4)
        known = ", ".join(sorted(files)) or "none"
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise TargetError(f"unknown target {name!r}", hint=f"{hint}known: {known}")
    return load_file(files[name])


def kind_of(name: str) -> str:
    """ "cpu", "cuda" or "mcu". Raises what `load_target` raises."""
    return load_target(name).kind


def list_targets() -> tuple[str, ...]:
    """The names `load_target` knows, sorted; "host" first."""
    return tuple(sorted(_target_files(), key=lambda name: (name != "host", name)))


def load_file(path: Path) -> Target:
    """Read one `target.toml`. Raises TargetError naming the file and the key."""
    raw = read_toml(path)
    if raw["name"] != path.parent.name:
        raise TargetError(
            f"name is {raw['name']!r} but the folder is {path.parent.name!r}", where=str(path)
        )
    if raw.pop("detect", False):
        raw = _merge(detected(read_cpu()), raw)
    if raw["kind"] == "mcu":
        _check_mcu(path, raw)
    if raw["kind"] == "cuda":
        return replace(_build(raw), gpu=read_gpu(path, raw))
    if "gpu" in raw:
        raise TargetError("is for kind cuda only", where=f"{path}: [gpu]")
    return _build(raw)


def _check_mcu(path: Path, raw: Mapping[str, Any]) -> None:
    """A microcontroller needs a compiler, the sizes of its memories and a clock."""
    for table, keys in MCU_NEEDS.items():
        for key in keys:
            if key not in raw.get(table, {}):
                raise TargetError("is missing", where=f"{path}: {table}.{key}")


def check_runnable(target: Target, facts: CpuFacts | None = None) -> None:
    """Raise TargetError unless code for this target runs on this machine."""
    if target.runner != "local":
        raise TargetError(
            f"target {target.name!r} does not run on this machine (runner {target.runner!r})"
        )
    check_code(target, facts)


def check_code(target: Target, facts: CpuFacts | None = None) -> None:
    """Raise TargetError unless this CPU has the instructions of a target's code."""
    facts = facts or read_cpu()
    if architecture(target, facts) != host_architecture(facts):
        raise TargetError(
            f"target {target.name!r} is for {architecture(target, facts)}, "
            f"this machine is {facts.machine}",
            hint="choose the target host",
        )
    missing = sorted(set(target.isa) - facts.flags)
    missing = missing or sorted(set(required_isa(target)) - facts.flags)
    if missing:
        raise TargetError(
            f"target {target.name!r} needs instructions that this CPU ({facts.model}) lacks: "
            f"{', '.join(missing)}",
            hint="choose the target host, or a machine that has them",
        )


def architecture(target: Target, facts: CpuFacts) -> str:
    """What a target's code is for: "x86_64", "aarch64", …; this machine's where it does not say."""
    triple = str(target.tvm_target.get("mtriple") or facts.machine)
    name = triple.partition("-")[0]
    return _ARCHITECTURES.get(name, name)


def host_architecture(facts: CpuFacts | None = None) -> str:
    """This machine's architecture, by the name that targets have for it."""
    machine = (facts or read_cpu()).machine
    return _ARCHITECTURES.get(machine, machine)


def required_isa(target: Target) -> tuple[str, ...]:
    """The features that a target's code may use: those it declares and those its CPU implies."""
    if target.tvm_target.get("kind") != "llvm":
        return target.isa
    emitted = llvm_features(target.tvm_target)
    known = X86_FEATURES if "sse2" in emitted else ARM_FEATURES
    implied = {linux for linux, llvm in known.items() if llvm in emitted}
    return tuple(sorted({*target.isa, *implied}))


def target_directories() -> tuple[Path, ...]:
    """Where targets are looked for, first found first: HWPRUNE_TARGETS, then hwprune's own."""
    user = [Path(p) for p in os.environ.get("HWPRUNE_TARGETS", "").split(os.pathsep) if p]
    package = Path(__file__).resolve().parent
    own = [package / "_targets", package.parent / "targets"]
    return tuple(d for d in (*user, *own) if d.is_dir())


def _target_files() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for directory in target_directories():
        for file in sorted(directory.glob(f"*/{FILE}")):
            found.setdefault(file.parent.name, file)
    return found


def _build(raw: Mapping[str, Any]) -> Target:
    """A Target from a checked (and, for the host, completed) description."""
    isa, memory = raw["isa"], raw.get("memory", {})
    energy = raw.get("energy")
    cores = raw.get("cores", {})
    return Target(
        name=raw["name"],
        description=raw["description"],
        kind=raw["kind"],
        tvm_target=dict(raw["tvm"]),
        isa=tuple(isa["features"]),
        vector_bits=isa["vector_bits"],
        vector_registers=isa["vector_registers"],
        cores=cores.get("count", 1),
        clock_hz=cores.get("clock_hz"),
        l1d_bytes=memory.get("l1d_bytes"),
        l2_bytes=memory.get("l2_bytes"),
        l3_bytes=memory.get("l3_bytes"),
        memory_bytes_per_s=memory.get("bytes_per_s"),
        sram_bytes=memory.get("sram_bytes"),
        flash_bytes=memory.get("flash_bytes"),
        energy=Energy(**energy) if energy else None,
        core=Core(**raw["core"]) if "core" in raw else None,
        board=tuple(raw.get("board", ())),
        sources=tuple(raw.get("sources", ())),
        channel_alignment=raw.get("alignment", {}).get("channels", 1),
        toolchain=raw.get("toolchain", {}).get("compiler", ""),
        runner=raw.get("runner", {}).get("kind", "local"),
        mcu=_build_mcu(raw) if raw["kind"] == "mcu" else None,
    )


def _build_mcu(raw: Mapping[str, Any]) -> Mcu:
    mcu, memory = raw["mcu"], raw["memory"]
    return Mcu(
        core=mcu["core"],
        prefix=mcu["prefix"],
        flags=tuple(mcu["flags"]),
        machine=mcu.get("machine", ""),
        flash_origin=mcu.get("flash_origin", 0),
        sram_origin=mcu.get("sram_origin", 0x20000000),
        flash_bytes=memory["flash_bytes"],
        sram_bytes=memory["sram_bytes"],
        clock_hz=raw["cores"]["clock_hz"],
    )


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `over` in their place, table by table."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
