"""The emulated boards: where their memory lies and how fast SysTick runs.

Sources: QEMU 7.2 `hw/arm/mps2.c` and `hw/arm/mps2-tz.c`; Arm application notes AN386, AN500, AN505,
AN547.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprune.emulator.toolchain import mcu_of
from hwprune.errors import ToolchainError
from hwprune.target import Target

MIB = 1 << 20


@dataclass(frozen=True)
class Region:
    """A piece of a memory map, in bytes."""

    origin: int
    size: int


@dataclass(frozen=True)
class Board:
    """A machine of QEMU: the memory that code, data and test vectors take, and SysTick's clock.

    `uart` is where its first serial port lies (Arm's CMSDK UART).
    """

    machine: str
    code: Region
    data: Region
    extra: Region
    systick_hz: int
    uart: int


_CODE, _DATA = Region(0, 4 * MIB), Region(0x2000_0000, 4 * MIB)

BOARDS = {
    board.machine: board
    for board in (
        Board("mps2-an385", _CODE, _DATA, Region(0x2100_0000, 16 * MIB), 25_000_000, 0x4000_4000),
        Board("mps2-an386", _CODE, _DATA, Region(0x2100_0000, 16 * MIB), 25_000_000, 0x4000_4000),
        Board("mps2-an500", _CODE, _DATA, Region(0x6000_0000, 16 * MIB), 25_000_000, 0x4000_4000),
        Board(
            "mps2-an505",
            Region(0x1000_0000, 4 * MIB),
            Region(0x3800_0000, 4 * MIB),
            Region(0x8000_0000, 16 * MIB),
            20_000_000,
            0x5020_0000,
        ),
        Board(
            "mps3-an547",
            Region(0x1000_0000, MIB // 2),
            Region(0x3000_0000, MIB // 2),
            Region(0x1100_0000, 2 * MIB),
            32_000_000,
            0x5930_3000,
        ),
    )
}


def board_of(target: Target) -> Board:
    """The board that stands for a target. Raises ToolchainError if it has none."""
    machine = mcu_of(target).machine
    if machine not in BOARDS:
        known = ", ".join(sorted(BOARDS))
        raise ToolchainError(
            f"target {target.name!r} has no emulated board"
            if not machine
            else f"no emulated board is called {machine!r}",
            where=f"target {target.name}: mcu.machine",
            hint=f"known: {known}",
        )
    return BOARDS[machine]
