"""What a board is and how it is doing, from files of its `/proc` and `/sys`.

In: the texts that `worker.Session` read. Out: `BoardFacts`, with the board's fingerprint and
what is to be warned about.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from hwprune.errors import TargetError, ToolchainError
from hwprune.host_cpu import CpuFacts, read_cpu
from hwprune.provenance import device_fingerprint
from hwprune.target import Target, architecture, check_code

CPUS = "/sys/devices/system/cpu/cpu"
HOT_C = 75.0  # Raspberry Pis lower their clock at 80
SLOW = 0.95  # of the highest clock: below, a core that works is throttled
STEADY = "performance"
_PARTS = {  # MIDR part numbers of Arm's own cores (implementer 0x41), from their manuals
    0xD03: "cortex-a53", 0xD04: "cortex-a35", 0xD05: "cortex-a55", 0xD07: "cortex-a57",
    0xD08: "cortex-a72", 0xD09: "cortex-a73", 0xD0A: "cortex-a75", 0xD0B: "cortex-a76",
    0xD0C: "neoverse-n1", 0xD0D: "cortex-a77", 0xD40: "neoverse-v1", 0xD41: "cortex-a78",
    0xD44: "cortex-x1", 0xD46: "cortex-a510", 0xD47: "cortex-a710", 0xD49: "neoverse-n2",
}  # fmt: skip
# Bits of the Raspberry Pi's get_throttled that tell of now, not of the past.
_THROTTLED = ("under-voltage", "clock capped", "throttled", "soft temperature limit")


@dataclass(frozen=True)
class BoardFacts:
    """A board. Sizes in bytes, clocks in Hz, temperature in degrees Celsius; None where unknown.

    `core` is the first of `pinned`, the cores that kernels are timed on; `core_name` LLVM's name.
    """

    cpu: CpuFacts
    model: str
    cores: tuple[int, ...]
    pinned: tuple[int, ...]
    core_name: str
    memory_bytes: int
    available_bytes: int
    clock_hz: float | None
    highest_hz: float | None
    temperature_c: float | None
    governor: str
    throttled: tuple[str, ...]
    tvm: str

    @property
    def fingerprint(self) -> str:
        """A name for this kind of board, as pinned: CPU, core, cores, memory and highest clock."""
        more = (self.model, self.core_name, len(self.cores), round(self.memory_bytes / 2**30))
        clock = round((self.highest_hz or 0) / 1e6)
        return device_fingerprint(self.cpu, "board", *map(str, more), f"{clock} MHz")

    @property
    def brief(self) -> str:
        """One line for people: what stands with every row."""
        parts = [f"board {self.model or self.cpu.model}", f"core {self.pinned[0]}"]
        if self.clock_hz:
            parts.append(f"{self.clock_hz / 1e6:.0f} MHz")
        if self.temperature_c is not None:
            parts.append(f"{self.temperature_c:.0f} C")
        return ", ".join([*parts, f"its tvm {self.tvm or 'unknown'}"])

    @property
    def hot(self) -> bool:
        """Whether it should cool down before it goes on."""
        return (self.temperature_c or 0) >= HOT_C

    def warnings(self, *, worked: bool) -> tuple[str, ...]:
        """What makes its latencies doubtful; `worked`: the clock was read right after work."""
        found = []
        if self.governor and self.governor != STEADY:
            found.append(
                f"the board's clock is governed by {self.governor!r}: set scaling_governor to "
                f"{STEADY!r} for latencies that repeat (docs/boards.md)"
            )
        clock, highest = self.clock_hz or 0.0, self.highest_hz or 0.0
        if worked and self.governor == STEADY and 0 < clock < SLOW * highest:
            found.append(
                f"the board ran at {clock / 1e6:.0f} of {highest / 1e6:.0f} MHz: it is throttled, "
                "or its clock is limited"
            )
        if self.throttled:
            found.append(f"the board reports: {', '.join(self.throttled)}")
        if self.hot:
            found.append(f"the board is at {self.temperature_c:.0f} degrees C: cool it")
        return tuple(found)


def read_facts(
    cores: Sequence[int], files: Mapping[str, str], target: Target, threads: int
) -> BoardFacts:
    """The facts of a board, its `pinned` cores chosen for a target.

    Those of the target's own kind first, then the fastest, then the last (the first ones take the
    interrupts). Raises TargetError where it has fewer cores than threads.
    """
    if threads > len(cores):
        raise TargetError(f"{threads} threads on a board with {len(cores)} cores", where="threads")
    parts = _core_names(files.get("/proc/cpuinfo", ""))
    wanted = str(target.tvm_target.get("mcpu", ""))
    limits = {i: _number(files.get(f"{CPUS}{i}/cpufreq/cpuinfo_max_freq")) or 0 for i in cores}
    order = sorted(cores, key=lambda i: (parts.get(i) == wanted, limits[i], i), reverse=True)
    pinned = tuple(order[:threads])
    clock = f"{CPUS}{pinned[0]}/cpufreq"
    now_khz = _number(files.get(f"{clock}/scaling_cur_freq"))
    zones = [_number(text) for name, text in files.items() if "/thermal_zone" in name]
    degrees = [z / 1000 for z in zones if z is not None and 0 < z < 200_000]
    return BoardFacts(
        cpu=replace(_cpu(files, target), cores=len(cores)),
        model=files.get("/proc/device-tree/model", "").strip("\0 \n"),
        cores=tuple(cores),
        pinned=pinned,
        core_name=parts.get(pinned[0], ""),
        memory_bytes=_memory(files, "MemTotal"),
        available_bytes=_memory(files, "MemAvailable"),
        clock_hz=now_khz * 1e3 if now_khz else None,
        highest_hz=limits[pinned[0]] * 1e3 or None,
        temperature_c=max(degrees, default=None),
        governor=files.get(f"{clock}/scaling_governor", "").strip(),
        throttled=_throttled(files),
        tvm=_tvm_version(files),
    )


def check_board(facts: BoardFacts, target: Target, where: str) -> None:
    """Raise ToolchainError or TargetError unless the board runs our TVM's code for the target."""
    ours = version("apache-tvm")
    if facts.tvm and facts.tvm != ours:
        raise ToolchainError(
            f"the board has TVM {facts.tvm}, this machine {ours}",
            where=where,
            hint=f"on the board: pip install apache-tvm=={ours}",
        )
    wanted = str(target.tvm_target.get("mcpu", ""))
    if facts.core_name and wanted in _PARTS.values() and facts.core_name != wanted:
        raise TargetError(
            f"the board's cores are {facts.core_name}, target {target.name!r} is for {wanted}",
            where=where,
            hint="choose the target of the board's core: see hwprune targets",
        )
    try:
        check_code(target, facts.cpu)
    except TargetError as error:
        raise TargetError(error.what, where=where, hint="choose the board's target") from error


def _cpu(files: Mapping[str, str], target: Target) -> CpuFacts:
    """The board's CPU, read as this machine's is; its driver was loaded, so it is of our kind."""
    with tempfile.TemporaryDirectory() as root:
        for name, text in files.items():
            file = Path(root) / name.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        facts = read_cpu(Path(root))
        return replace(facts, machine=architecture(target, facts))


def _core_names(cpuinfo: str) -> dict[int, str]:
    """LLVM's name of every core whose part number we know."""
    names = {}
    for block in cpuinfo.split("\n\n"):
        fields = dict(re.findall(r"^(\S[^:\t]*)\s*:\s*(.*)$", block, re.MULTILINE))
        try:
            part, implementer = int(fields["CPU part"], 16), int(fields["CPU implementer"], 16)
            if implementer == 0x41 and part in _PARTS:
                names[int(fields["processor"])] = _PARTS[part]
        except (KeyError, ValueError):
            continue
    return names


def _memory(files: Mapping[str, str], name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB$", files.get("/proc/meminfo", ""), re.MULTILINE)
    return 1024 * int(found.group(1)) if found else 0


def _throttled(files: Mapping[str, str]) -> tuple[str, ...]:
    texts = [text for name, text in files.items() if name.endswith("/get_throttled")]
    try:
        bits = int(texts[0].strip(), 16) if texts else 0
    except ValueError:
        return ()
    return tuple(name for i, name in enumerate(_THROTTLED) if bits >> i & 1)


def _tvm_version(files: Mapping[str, str]) -> str:
    texts = [text for name, text in files.items() if name.endswith("/_version.py")]
    found = re.search(r"__version__ = .*?'([^']+)'", texts[0]) if texts else None
    return found.group(1) if found else ""


def _number(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:
        return None
