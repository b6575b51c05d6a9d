"""What of a target the schedule rules go by: vectors, registers, what a core starts, caches.

In: a `Target` and a thread count. Out: a `Context`.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprune.lower.cpu.tiles import HALVES, WIDE, Pipes
from hwprune.target import FLOAT16, Target

MEMORY_BYTES_PER_CYCLE = 5.0  # that one core reads, where a target does not say less
NEAR_BYTES_PER_CYCLE = 16.0  # half of what Zen 4 reads from its own level 3: measured 8 to 20
ZEN4 = "znver4"  # LLVM's name
PEAK_SHARE = 0.5  # of the memory's peak that one core gets
HALF_LANES = 16  # FMLA by element takes halves of V0 to V15 (Arm Architecture Reference Manual)
STEP = 4  # where broadcasts are loads
L3_SHARE = 8 << 20  # bytes of level 3 that one core fills


@dataclass(frozen=True)
class Context:
    """What a rule may use: vector width in elements, registers, threads, cache sizes in bytes."""

    lanes: int
    registers: int
    threads: int
    l1_bytes: int
    l2_bytes: int
    pipes: Pipes = WIDE
    memory_bytes_per_cycle: float = MEMORY_BYTES_PER_CYCLE
    l3_bytes: int = L3_SHARE  # this core's share; 0 without such a level
    item_bytes: int = 4  # of an element

    @property
    def step(self) -> int:
        """Input channels of an unrolled step of a reduction: a register's, where it is held."""
        return self.lanes if self.pipes.lane_operand else STEP

    def held(self, step: int) -> int:
        """`step` where values of so many steps are held in a register, of which lanes are used."""
        return step if self.pipes.lane_operand and step == self.lanes else 0

    @staticmethod
    def of(target: Target, threads: int) -> Context:
        """The context of a target."""
        return Context(
            target.lanes,
            target.vector_registers,
            threads,
            target.l1d_bytes or 32 << 10,
            target.l2_bytes or 256 << 10,
            _pipes(target),
            _memory(target),
            min(target.l3_bytes or (0 if target.l2_bytes else L3_SHARE), L3_SHARE),
            2 if target.dtype == FLOAT16 else 4,
        )


def _memory(target: Target) -> float:
    """Bytes a cycle that one core reads from memory."""
    if target.memory_bytes_per_s is None or target.clock_hz is None:
        return NEAR_BYTES_PER_CYCLE if _in_halves(target) else MEMORY_BYTES_PER_CYCLE
    peak = target.memory_bytes_per_s / target.clock_hz
    return min(PEAK_SHARE * peak, MEMORY_BYTES_PER_CYCLE)


def _in_halves(target: Target) -> bool:
    """Whether a core takes its vectors in two halves."""
    return target.tvm_target.get("mcpu") == ZEN4 and target.vector_bits == 512


def _pipes(target: Target) -> Pipes:
    core, half = target.core, target.dtype == FLOAT16
    if core is None:
        return HALVES if _in_halves(target) else WIDE
    return Pipes(
        core.fma_per_cycle,
        core.fma_latency_cycles,
        core.loads_per_cycle,
        core.issue_width,
        core.lane_operand,
        core.in_order,
        HALF_LANES if half else target.vector_registers,
    )
