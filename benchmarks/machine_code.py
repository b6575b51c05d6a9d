"""Reading Arm assembly: the hot loop of a kernel, and what LLVM's machine-code analyser says of it.

In: the assembly of a function as LLVM prints it. Out: `Loop`, the innermost loop that matters,
and `Analysis`: its cycles by the analyser's model of a core. The model knows no
caches: every load hits level 1.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache

from hwprune.errors import ToolchainError
from hwprune.target import FLOAT16, FLOAT32, Core

ANALYSERS = ("llvm-mca", *(f"llvm-mca-{version}" for version in range(22, 13, -1)))
ITERATIONS = 100
MANY = 10_000  # so that what comes before the first is nothing
REGISTERS = 24  # independent multiply-adds that hide the latency of any core

_LABEL = re.compile(r"(\.LBB\w+):")
_JUMP = re.compile(r"(?:b|b\.\w+|cbn?z|tbn?z)\s+(?:.*,\s*)?(\.LBB\w+)$")
_FRAME = re.compile(r"(mov|add)\s+x29, sp\b")
_FUNCTION = re.compile(r"[A-Za-z_]\w*:")
_VECTOR = r"\b[qdvsbh]\d+\b"


@dataclass(frozen=True)
class Loop:
    """The instructions of an innermost loop; `framed` where x29 points to the stack in it."""

    lines: tuple[str, ...]
    framed: bool = False

    def having(self, pattern: str) -> tuple[str, ...]:
        """The instructions that match."""
        return tuple(line for line in self.lines if re.search(pattern, line))

    @property
    def multiply_adds(self) -> tuple[str, ...]:
        """Fused multiply-adds of vectors."""
        return self.having(r"^fml[as]\s+v")

    @property
    def scalar(self) -> tuple[str, ...]:
        """Fused multiply-adds of single values."""
        return self.having(r"^f(madd|msub|nmadd|nmsub)\b")

    @property
    def instructions(self) -> int:
        """How many there are, without labels and directives."""
        return sum(not line.startswith(".") for line in self.lines)

    def load_cycles(self, core: Core) -> float:
        """Cycles of a core's loads: of whole vectors as it says, of less one at least."""
        whole = others = 0
        for line in self.having(r"^ld"):
            loaded = re.findall(
                _VECTOR, re.sub(r"\.\d+[hs]", "", line.split("[")[0]).replace("{ v", "q")
            )
            wide = sum(register.startswith("q") for register in loaded)
            whole, others = whole + wide, others + (wide == 0)
        return whole / core.loads_per_cycle + others / max(core.loads_per_cycle, 1)

    def core_cycles(self, core: Core) -> float:
        """Cycles of an iteration by what a target says that its core starts in one."""
        multiply_adds = len(self.multiply_adds) / core.fma_per_cycle
        return max(multiply_adds, self.load_cycles(core), self.instructions / core.issue_width)

    @property
    def spills(self) -> tuple[str, ...]:
        """Loads and stores of vector registers on the stack."""
        stack = "sp|x29" if self.framed else "sp"
        return tuple(
            line
            for line in self.having(rf"^(ld|st)\w*\s.*\[({stack})\b")
            if re.search(_VECTOR, line.split("[")[0])
        )


@dataclass(frozen=True)
class Analysis:
    """Cycles of one iteration, simulated; and by the busiest unit alone, had nothing to wait."""

    cycles: float
    unit_cycles: float


def innermost_loops(assembly: str) -> list[Loop]:
    """The innermost loops of Arm assembly."""
    return [Loop(*body) for body in innermost_bodies(assembly, _JUMP, _FRAME)]


def innermost_bodies(
    assembly: str, jump: re.Pattern[str], frame: re.Pattern[str]
) -> list[tuple[tuple[str, ...], bool]]:
    """Every stretch that ends in a jump back to its start and holds no other such stretch.

    Its lines, and whether its function has a frame. `jump` captures a label, `frame` matches what
    sets the frame's register: the instruction set is told by these two.
    """
    found: list[tuple[tuple[str, ...], bool]] = []
    for function in _functions(assembly):
        labels = {m[1]: i for i, line in enumerate(function) if (m := _LABEL.match(line))}
        spans = [
            (labels[m[1]], i)
            for i, line in enumerate(function)
            if (m := jump.match(line)) and labels.get(m[1], i + 1) <= i
        ]
        framed = any(frame.match(line) for line in function)
        for start, end in spans:
            if not any(s != (start, end) and start <= s[0] and s[1] <= end for s in spans):
                found.append((tuple(function[start : end + 1]), framed))
    return found


def hot_loop(assembly: str) -> Loop:
    """The innermost loop where multiply-adds are densest, of those that have many of them.

    Many are half of the most. A transform, unrolled, may have more than the products have that it
    is made for, and an unrolled depthwise convolution more than the expansion before it. Without
    a loop an empty one.
    """
    loops = innermost_loops(assembly)
    most = max((len(loop.multiply_adds) for loop in loops), default=0)
    many = [loop for loop in loops if 2 * len(loop.multiply_adds) >= most]
    return max(many, key=lambda loop: len(loop.multiply_adds) / len(loop.lines), default=Loop(()))


def analyser() -> str:
    """The program. Raises ToolchainError naming its Debian package where it is missing."""
    found = next((name for name in ANALYSERS if shutil.which(name)), None)
    if found is None:
        raise ToolchainError(
            "LLVM's machine-code analyser is not there (llvm-mca)",
            where="PATH",
            hint="install the Debian package llvm",
        )
    return found


@cache
def analyser_version() -> str:
    """The version of LLVM that the analyser's models are of."""
    said = subprocess.run([analyser(), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version (\S+)", said.stdout)
    return found[1] if found else "unknown"


@cache
def analyse(loop: Loop, cpu: str, iterations: int = ITERATIONS) -> Analysis:
    """A loop, over and over, on the model of a CPU. Raises ToolchainError where that fails."""
    body = "\n".join(line for line in loop.lines if _LABEL.match(line) or line[0] != ".")
    command = [analyser(), "-mtriple=aarch64-linux-gnu", f"-mcpu={cpu}"]
    command += [f"-iterations={iterations}", "-instruction-info=0", "-resource-pressure=0"]
    done = subprocess.run(command, input=body, capture_output=True, text=True, check=False)
    total = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    unit = re.search(r"Block RThroughput:\s+([\d.]+)", done.stdout)
    if total is None or unit is None:
        first = next(iter(done.stderr.splitlines()), "no message")
        raise ToolchainError(f"{command[0]} cannot analyse a loop for {cpu}: {first}")
    return Analysis(int(total[1]) / iterations, float(unit[1]))


@cache
def peak(cpu: str, dtype: str = FLOAT32) -> float:
    """Vector multiply-adds a cycle that the model of a CPU starts at most."""
    form = "fmla v{}.8h, v30.8h, v0.h[0]" if dtype == FLOAT16 else "fmla v{}.4s, v30.4s, v0.s[0]"
    lines = tuple(form.format(i + 1) for i in range(REGISTERS))
    return REGISTERS / analyse(Loop(lines), cpu, MANY).cycles


def _functions(assembly: str) -> list[list[str]]:
    functions: list[list[str]] = [[]]
    for raw in assembly.splitlines():
        line = raw.split("//")[0].strip()
        if _FUNCTION.match(line):
            functions.append([])
        elif line:
            functions[-1].append(line)
    return functions
