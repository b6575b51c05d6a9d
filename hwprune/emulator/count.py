"""How often every instruction of a program ran: QEMU with a plugin, joined with the disassembly."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hwprune.emulator.program import Elf, c_files, run_elf
from hwprune.emulator.toolchain import find_host_compiler, find_tool, run_tool
from hwprune.target import Target

PLUGIN = "count_plugin.c"


@dataclass(frozen=True)
class Executed:
    """An instruction, in the order of addresses: its text and how often it ran."""

    address: int
    mnemonic: str
    operands: str
    count: int


def count_instructions(target: Target, elf: Elf, timeout_s: float = 300.0) -> list[Executed]:
    """Every instruction of a program that ran at least once.

    Raises ToolchainError where the compiler for the host, or one of QEMU with plugins, is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        library, counts = Path(folder) / "count.so", Path(folder) / "counts"
        source = c_files() / PLUGIN
        run_tool([find_host_compiler(), "-shared", "-fPIC", "-O2", source, "-o", library])
        plugin = f"{library},path={counts}"
        run_elf(target, elf.path, timeout_s, plugin=plugin, accepted=(0, 1))
        ran = {}
        for line in counts.read_text().splitlines():
            address, count = line.split()
            ran[int(address, 16)] = int(count)
    text = run_tool([find_tool(target, "objdump"), "-d", "--no-show-raw-insn", elf.path])
    return _join(text.splitlines(), ran)


def _join(lines: Sequence[str], ran: dict[int, int]) -> list[Executed]:
    found = []
    for line in lines:
        place, colon, rest = line.partition(":\t")
        address = place.strip()
        if not colon or not address or any(c not in "0123456789abcdef" for c in address):
            continue
        mnemonic, _, operands = rest.partition("\t")
        count = ran.get(int(address, 16), 0)
        if count:
            name = mnemonic.strip().removesuffix(".w").removesuffix(".n")
            operands = operands.partition(";")[0].partition("@")[0].strip()
            found.append(Executed(int(address, 16), name, operands, count))
    return found
