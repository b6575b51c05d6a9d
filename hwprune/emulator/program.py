"""A bare program: C sources -> ELF, its sizes, and a run of it on the emulated board.

QEMU runs with `-icount`: every instruction takes 2^SHIFT ns of virtual time, which SysTick counts,
so counts of instructions are repeatable to the instruction.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from hwprune.emulator.boards import board_of
from hwprune.emulator.link import linker_script
from hwprune.emulator.toolchain import find_emulator, find_tool, mcu_of, run_tool
from hwprune.errors import BudgetError, ToolchainError
from hwprune.target import Target

SHIFT = 6  # 64 ns an instruction: more than a tick on every board, so none is lost between ticks
CFLAGS = (
    "-std=c11",
    "-O2",
    "-ffunction-sections",
    "-fdata-sections",
    "-Wall",
    "-Wextra",
    "-Werror",
)
QUIET = (
    *("-display", "none", "-serial", "none", "-monitor", "none"),
    *("-chardev", "stdio,id=console"),
    *("-semihosting-config", "enable=on,chardev=console"),
)
HARNESS = ("startup.c", "harness.c", "semihost.c")
SERIAL = ("startup.c", "harness.c", "serial.c")  # the same over a serial port


@dataclass(frozen=True)
class Elf:
    """A linked program. `flash_bytes`: code, constants and initial data; `sram_bytes`: data, stack.

    Sections outside the device's memories (`.vectors`) do not count.
    """

    path: Path
    flash_bytes: int
    sram_bytes: int


def c_files() -> Path:
    """The folder of startup and harness."""
    return Path(str(files("hwprune.emulator") / "c"))


def build_elf(
    target: Target, sources: Sequence[Path], folder: Path, defines: Sequence[str] = ()
) -> Elf:
    """Compile sources with startup and harness, and link them for the target's emulated board.

    Memories have the device's sizes. Raises BudgetError saying by how much a program does not fit,
    ToolchainError for a missing compiler or what it complains of.
    """
    board, mcu = board_of(target), mcu_of(target)
    script, path = folder / "emulator.ld", folder / "program.elf"
    text = linker_script(
        board.code.origin,
        min(mcu.flash_bytes, board.code.size),
        board.data.origin,
        min(mcu.sram_bytes, board.data.size),
        board.extra,
    )
    script.write_text(text, encoding="utf-8")
    common = [c_files() / name for name in HARNESS]
    command = [
        find_tool(target, "gcc"),
        *mcu.flags,
        *CFLAGS,
        *(f"-D{name}" for name in defines),
        "-nostartfiles",
        "--specs=nosys.specs",
        "-Wl,--gc-sections,--no-warn-rwx-segments",
        f"-I{c_files()}",
        f"-I{folder}",
        f"-T{script}",
        *sources,
        *common,
        "-lm",
        "-o",
        path,
    ]
    try:
        run_tool([str(part) for part in command])
    except ToolchainError as error:
        if "overflowed by" in str(error):
            raise BudgetError(
                f"the program does not fit {target.name}: {_overflow(str(error))}",
                hint="prune further, or choose a larger device",
            ) from error
        raise
    return Elf(path, *_sizes(target, path))


def run_elf(
    target: Target,
    elf: Path,
    timeout_s: float = 120.0,
    *,
    plugin: str = "",
    accepted: Sequence[int] = (0,),
) -> str:
    """What a program prints on the emulated board.

    Raises ToolchainError if it does not end in time or with a status that is not accepted.
    """
    board = board_of(target)
    command = [find_emulator(), "-M", board.machine, *QUIET]
    command += ["-icount", f"shift={SHIFT}", "-kernel", str(elf)]
    command += ["-plugin", plugin] if plugin else []
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(
            f"the program did not end within {timeout_s:.0f} s on the emulated {board.machine}"
        ) from error
    if done.returncode not in accepted:
        said = done.stderr.strip().splitlines()[:2]
        raise ToolchainError(
            f"the program failed on the emulated {board.machine} with status {done.returncode}"
            + (f": {' / '.join(said)}" if said else "")
        )
    return done.stdout


def instructions(target: Target, ticks: int) -> int:
    """Instructions that ran while SysTick counted that many ticks."""
    ns = ticks * 10**9
    return round(ns / (board_of(target).systick_hz << SHIFT))


def _overflow(text: str) -> str:
    parts = [part.strip() for part in text.split("/") if "overflowed by" in part]
    return "; ".join(part[part.index("region") :] for part in parts)


def _sizes(target: Target, elf: Path) -> tuple[int, int]:
    """Bytes in flash and in SRAM, by the addresses of the sections."""
    sizes = {}
    for line in run_tool([find_tool(target, "size"), "-A", elf]).splitlines():
        parts = line.split()
        if len(parts) == 3 and parts[1].isdigit():
            sizes[parts[0]] = int(parts[1])
    flash = sum(sizes.get(name, 0) for name in (".text", ".ARM.exidx", ".data"))
    sram = sum(sizes.get(name, 0) for name in (".data", ".bss", ".stack"))
    return flash, sram
