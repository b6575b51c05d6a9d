"""This machine as a target: what `target.toml` would say of its CPU, asked of LLVM.

In: `CpuFacts`. Out: a description in the schema of the file, and LLVM's names of features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hwprune.host_cpu import X86_FEATURES, CpuFacts, features, vector_unit
from hwprune.tvm_runtime import load_tvm


def detected(facts: CpuFacts) -> dict[str, Any]:
    """The description of a CPU, in the schema of the file."""
    codegen = load_tvm().target.codegen
    mcpu = str(codegen.llvm_get_system_cpu())
    bits, registers = vector_unit(facts)
    memory = {"l1d_bytes": facts.l1d_bytes, "l2_bytes": facts.l2_bytes, "l3_bytes": facts.l3_bytes}
    cores: dict[str, Any] = {"count": facts.cores, "clock_hz": facts.clock_hz}
    return {
        "description": f"this machine: {facts.model} ({mcpu}), {facts.cores} cores",
        "isa": {
            "features": sorted(features(facts)),
            "vector_bits": bits,
            "vector_registers": registers,
        },
        "cores": {key: value for key, value in cores.items() if value},
        "memory": {key: value for key, value in memory.items() if value},
        "alignment": {"channels": max(8, bits // 32)},
        "tvm": {"kind": "llvm", "mcpu": mcpu, "mattr": host_attributes(facts, mcpu)},
    }


def host_attributes(facts: CpuFacts, mcpu: str) -> list[str]:
    """LLVM attributes that make `mcpu` fit this CPU.

    Takes away the instructions that the model has by name but this (virtual) machine hides, and
    asks for 512-bit vectors where LLVM would settle for 256.
    """
    if facts.machine in ("aarch64", "arm64"):
        return ["+neon"]
    names = llvm_features({"kind": "llvm", "mcpu": mcpu})
    hidden = sorted(
        llvm for linux, llvm in X86_FEATURES.items() if llvm in names and linux not in facts.flags
    )
    wide = ["-prefer-256-bit"] if vector_unit(facts)[0] == 512 else []
    return [*(f"-{llvm}" for llvm in hidden), *wide]


def llvm_features(tvm_target: Mapping[str, Any]) -> set[str]:
    """The features, by LLVM's names, that code for one of TVM's targets may use."""
    tvm = load_tvm()
    found = tvm.target.codegen.llvm_get_cpu_features(tvm.target.Target(dict(tvm_target)))
    return {str(feature) for feature in found}
