"""Reading the assembly of a kernel: its innermost loops, and what is in the hottest of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from benchmarks.machine_code import innermost_bodies
from hwprune.lower.spec import Workload
from hwprune.target import Target
from tests.kernel_cases import compiled

_JUMP = re.compile(r"j\w+\s+(\.LBB\w+)")
_FRAME = re.compile(r"movq\s+%rsp, %rbp")


@dataclass(frozen=True)
class Loop:
    """The instructions of an innermost loop; `framed` where %rbp points to the stack in it."""

    lines: tuple[str, ...]
    framed: bool

    def having(self, pattern: str) -> list[str]:
        """The instructions that match."""
        return [line for line in self.lines if re.search(pattern, line)]

    @property
    def multiply_adds(self) -> list[str]:
        """Fused multiply-adds, of vectors and of single values."""
        return self.having(r"^vfn?m(add|sub)\d+[ps]s\b")

    @property
    def spills(self) -> list[str]:
        """Vector instructions that read or write the stack."""
        stack = r"\(%r(sp|bp)\b" if self.framed else r"\(%rsp\b"
        return [line for line in self.having(stack) if line.startswith("v")]


def assembly_of(workload: Workload, target: Target, threads: int = 1) -> str:
    """The assembly (AT&T) of the kernel that a rule makes of a workload."""
    return str(compiled(workload, target, threads)[1].mod.inspect_source("s"))


def innermost_loops(assembly: str) -> list[Loop]:
    """The innermost loops of x86 assembly."""
    return [Loop(*body) for body in innermost_bodies(assembly, _JUMP, _FRAME)]


def hot_loop(assembly: str) -> Loop:
    """The innermost loop with the most fused multiply-adds."""
    return max(innermost_loops(assembly), key=lambda loop: len(loop.multiply_adds))
