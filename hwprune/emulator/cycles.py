"""Instructions -> cycles: a small model of a core, and what it rests on.

Cortex-M4: Arm DDI 0439 (Technical Reference Manual), table 3-1. A load takes two cycles, one after
another load or store; a store with an immediate offset one; n registers at once 1 + n; a taken
branch 1 + P with P of 1 to 3, taken as 2; everything else one. Constants that stream from flash
wait: the STM32L4R5 at 120 MHz has five wait states for 16 bytes (ST RM0432, 3.3.3). Instructions
come from its cache.

Cortex-M7 and M33: the cycles of the M4's model times the ratio of cycles that MLPerf Tiny v1.0
shows for one vendor's runtime on both cores, the geometric mean of the four networks. (Plumerai,
STM32F746 / L4R5: 0.67, 0.48, 0.49, 0.74; STM32U585 / L4R5: 0.82, 0.66, 0.68, 1.16, ST's own runtime
0.81.) Cortex-M0+ and M55: the M4's model without such evidence; an instruction of Helium takes two
cycles (Arm 101051, dual beat), none of which overlap here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hwprune.emulator.count import Executed, count_phases
from hwprune.emulator.program import Elf
from hwprune.emulator.toolchain import mcu_of
from hwprune.target import Target

BRANCH = 2  # further cycles of a taken branch
DIVISION = 7  # 2 to 12
LINE_BYTES, WAIT = 16, 5  # flash of the STM32L4R5 at 120 MHz
RATIO = {"cortex-m7": 0.586, "cortex-m33": 0.81}  # cycles over those of an M4
_VECTOR = ("vldrb", "vstrb", "vmlada", "vdup")  # two of four beats a cycle on a Cortex-M55
_MANY = ("ldm", "stm", "push", "pop", "vldm", "vstm", "vpush", "vpop")


@dataclass(frozen=True)
class Estimate:
    """Cycles of one run by a model of the core, and the time at the target's clock."""

    cycles: int
    latency_ms: float
    how: str


@dataclass(frozen=True)
class Phase:
    """What ran between `hwprune_start` and `hwprune_stop`.

    `core_cycles`: of a Cortex-M4 with memory that never waits.
    """

    instructions: int
    core_cycles: float


def estimate(target: Target, core_cycles: float, flash_reads: int = 0) -> Estimate:
    """What `core_cycles` of a Cortex-M4 are on the target, `flash_reads` bytes of weights read."""
    mcu = mcu_of(target)
    core = mcu.core
    cycles = core_cycles + WAIT * flash_reads / LINE_BYTES
    cycles *= RATIO.get(core, 1.0)
    how = f"{core} after Arm DDI 0439, flash of the STM32L4R5"
    if core in RATIO:
        how += f", times {RATIO[core]} by MLPerf Tiny results"
    elif core != "cortex-m4":
        how += ", not calibrated for this core"
    return Estimate(round(cycles), 1e3 * cycles / mcu.clock_hz, how)


def measure_phases(target: Target, elf: Elf, timeout_s: float = 300.0) -> list[Phase]:
    """What ran in every phase of a program, in the order in which they end."""
    return [
        Phase(sum(e.count for e in executed), model_cycles(executed))
        for executed in count_phases(target, elf, timeout_s)
    ]


def model_cycles(executed: Sequence[Executed]) -> float:
    """Cycles of a Cortex-M4 with memory that never waits."""
    total, before = 0.0, ""
    for i, one in enumerate(executed):
        after = executed[i + 1].count if i + 1 < len(executed) else 0
        total += one.count * _cost(one, before)
        if is_branch(one.mnemonic):
            taken = one.count if _always(one.mnemonic) else max(one.count - after, 0)
            total += BRANCH * taken
        before = one.mnemonic
    return total


def is_branch(mnemonic: str) -> bool:
    """Whether an instruction may jump."""
    stem = mnemonic.partition(".")[0]
    return (stem[:1] == "b" and stem[:3] not in ("bfi", "bfc", "bic", "bkp")) or stem[:2] == "cb"


def _always(mnemonic: str) -> bool:
    return mnemonic.partition(".")[0] in ("b", "bl", "bx", "blx")


def _cost(one: Executed, before: str) -> float:
    """Cycles of an instruction after another, jumps as if not taken."""
    name = one.mnemonic
    if name.startswith(_VECTOR):
        return 2
    if name.startswith(_MANY):
        return 1 + _registers(one.operands)
    if name.startswith(("ldrd", "strd")):
        return 3
    if name.startswith(("ldr", "vldr")):
        return 1 if before.startswith(("ldr", "str")) else 2
    if name.startswith("str"):
        offset = one.operands.partition("[")[2]
        return 1 if "," not in offset or "#" in offset.partition(",")[2][:3] else 2
    if name.startswith(("sdiv", "udiv")):
        return DIVISION
    return 1


def _registers(operands: str) -> int:
    """How many registers a list names: "{r4, r5, r6-r8}"."""
    count = 0
    for part in operands.partition("{")[2].rstrip("}").split(","):
        first, dash, last = part.strip().partition("-")
        span = int(last[1:]) - int(first[1:]) + 1 if dash and last[1:].isdigit() else 1
        count += span
    return count
