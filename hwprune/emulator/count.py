"""How often every instruction of a program ran: QEMU with a plugin, joined with the disassembly."""

from __future__ import annotations

import re
import tempfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwprune.emulator.program import Elf, c_files, run_elf
from hwprune.emulator.toolchain import find_host_compiler, find_tool, run_tool
from hwprune.errors import ToolchainError
from hwprune.target import Target

PLUGIN = "count_plugin.c"
START, STOP = "hwprune_start", "hwprune_stop"  # of the harness: what lies between is a phase
_FUNCTION = re.compile(r"([0-9a-f]+) <(\S+)>:")
COUNTING = (START, STOP, "now", "SysTick_Handler")  # its functions that are no part of a phase


@dataclass(frozen=True)
class Executed:
    """An instruction, in the order of addresses: its text and how often it ran."""

    address: int
    mnemonic: str
    operands: str
    count: int


def count_phases(target: Target, elf: Elf, timeout_s: float = 300.0) -> list[list[Executed]]:
    """Instructions between every call of `hwprune_start` and the next of `hwprune_stop`.

    Without the harness's own, and without its empty phase (`hwprune_harness_init`).

    Raises ToolchainError where the compiler for the host, or one of QEMU with plugins, is missing,
    and where a program has no phases.
    """
    code = _Code.of(target, elf)
    if not {START, STOP} <= code.functions.keys():
        raise ToolchainError(f"{elf.path} has no {START} and {STOP} to count between")
    options = f",start={code.functions[START]:x},stop={code.functions[STOP]:x}"
    text = _run_counted(target, elf, options, timeout_s)
    counted = code.without(COUNTING)
    return [_join(counted, _numbers(part)) for part in text.split("phase\n")[1:-1]]


def _run_counted(target: Target, elf: Elf, options: str, timeout_s: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        library, counts = Path(folder) / "count.so", Path(folder) / "counts"
        source = c_files() / PLUGIN
        run_tool([find_host_compiler(), "-shared", "-fPIC", "-O2", source, "-o", library])
        plugin = f"{library},path={counts}{options}"
        run_elf(target, elf.path, timeout_s, plugin=plugin, accepted=(0, 1))
        return counts.read_text()


def _numbers(text: str) -> dict[int, int]:
    pairs = (line.split() for line in text.splitlines())
    return {int(address, 16): int(count) for address, count in pairs}


@dataclass(frozen=True)
class _Code:
    """The disassembly: address -> (mnemonic, operands), in order, and where functions begin."""

    instructions: Mapping[int, tuple[str, str]]
    functions: Mapping[str, int]

    @staticmethod
    def of(target: Target, elf: Elf) -> _Code:
        text = run_tool([find_tool(target, "objdump"), "-d", "--no-show-raw-insn", elf.path])
        instructions: dict[int, tuple[str, str]] = {}
        functions: dict[str, int] = {}
        for line in text.splitlines():
            place, colon, rest = line.partition(":\t")
            address = place.strip()
            begins = _FUNCTION.fullmatch(line)
            if begins:
                functions[begins[2]] = int(begins[1], 16)
            elif colon and address and all(c in "0123456789abcdef" for c in address):
                mnemonic, _, operands = rest.partition("\t")
                name = mnemonic.strip().removesuffix(".w").removesuffix(".n")
                operands = operands.partition(";")[0].partition("@")[0].strip()
                instructions[int(address, 16)] = (name, operands)
        return _Code(instructions, functions)

    def without(self, names: Sequence[str]) -> _Code:
        """The same without the instructions of some functions."""
        starts = sorted(self.functions.values())
        gone = {self.functions[name] for name in names if name in self.functions}
        kept = {
            address: text
            for address, text in self.instructions.items()
            if starts[bisect_right(starts, address) - 1] not in gone
        }
        return _Code(kept, self.functions)


def _join(code: _Code, ran: Mapping[int, int]) -> list[Executed]:
    return [
        Executed(address, *code.instructions[address], ran[address])
        for address in sorted(ran.keys() & code.instructions.keys())
    ]
