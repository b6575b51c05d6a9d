"""`Target`: what hwprune knows about a device, loaded from `targets/<name>/target.toml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Energy:
    """Energy per multiply-accumulate and per byte moved to or from memory, with the source."""

    pj_per_mac: float
    pj_per_byte: float
    source: str


@dataclass(frozen=True)
class Target:
    """A device. Sizes in bytes, rates per second, clocks in Hz; None where unknown."""

    name: str
    description: str
    kind: str  # "cpu" | "cuda" | "mcu"
    tvm_target: dict[str, Any]  # TVM's target as a dict, e.g. {"kind": "llvm", "mcpu": ...}
    isa: tuple[str, ...]  # instruction-set features, e.g. ("avx2", "fma", "avx512f")
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
    channel_alignment: int = 1  # widths worth trying are multiples of this
    toolchain: str = ""
    runner: str = "local"

    @property
    def lanes(self) -> int:
        """float32 elements in a vector register: the block of the packed layout."""
        return self.vector_bits // 32
