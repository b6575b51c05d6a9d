"""The programs that make and run code for microcontrollers: found, or named with their package."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hwprune.errors import ToolchainError
from hwprune.target import Mcu, Target

PACKAGES = {
    "arm-none-eabi-": "gcc-arm-none-eabi and libnewlib-arm-none-eabi",
    "riscv64-unknown-elf-": "gcc-riscv64-unknown-elf and picolibc-riscv64-unknown-elf",
    "qemu-system-arm": "qemu-system-arm",
    "gcc": "gcc",
    "qemu-system-riscv32": "qemu-system-misc",
}


def mcu_of(target: Target) -> Mcu:
    """How to compile for a target. Raises ToolchainError unless it is a microcontroller."""
    if target.mcu is None:
        raise ToolchainError(
            f"target {target.name!r} is no microcontroller (kind {target.kind!r})",
            hint="choose one of kind mcu; hwprune targets lists them",
        )
    return target.mcu


def find_tool(target: Target, tool: str) -> str:
    """The path of a target's GCC program ("gcc", "size", …).

    Raises ToolchainError with the Debian package where it is missing.
    """
    prefix = mcu_of(target).prefix
    return _find(prefix + tool, PACKAGES.get(prefix, "the toolchain of your device's vendor"))


def find_emulator(name: str = "qemu-system-arm") -> str:
    """The path of the emulator. Raises ToolchainError with its Debian package if missing."""
    return _find(name, PACKAGES[name])


def find_host_compiler() -> str:
    """The path of this machine's C compiler. Raises ToolchainError if it has none."""
    return _find("gcc", PACKAGES["gcc"])


def _find(program: str, package: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise ToolchainError(
            f"{program} is not installed", hint=f"install the Debian package {package}"
        )
    return path


def run_tool(command: Sequence[str | Path], timeout_s: float = 300.0) -> str:
    """Run a program; returns what it writes.

    Raises ToolchainError with the first of its complaints if it fails or does not end in time.
    """
    program = Path(command[0]).name
    try:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"{program} did not end within {timeout_s:.0f} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        wrong = [x for x in lines if "error" in x or "overflowed" in x] or lines
        raise ToolchainError(f"{program} failed: {' / '.join(wrong[:3]) or done.returncode}")
    return done.stdout
