"""A board on a serial port runs the program of an artifact and says what it counted.

In: the folder that `hwprune compile` wrote for a microcontroller and the board's port. Out:
`BoardRun`. The protocol is text, a line for every fact: the host sends "run", again and again until
it is heard; the board answers "hwprune 1 KIND HZ ID", then what main.c prints, then "end". KIND is
"device" or "emulator": where counts are cycles of a core, or instructions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune.emulator.program import instructions
from hwprune.emulator.toolchain import mcu_of
from hwprune.errors import ArtifactError, HwpruneError, ToolchainError
from hwprune.mcu_program import Counted, read_counts
from hwprune.mcu_vectors import model_id
from hwprune.target import Target, load_target

BAUD = 115_200
TIMEOUT_S = 10.0
AGAIN_S = 1.0  # after which "run" is said again
GREETING, VERSION, END, FAULT = "hwprune", "1", "end", "fault"
DEVICE, EMULATOR = "device", "emulator"
_LINE = 200  # bytes: longer lines are noise


@dataclass(frozen=True)
class BoardRun:
    """What a board counted for the first test vector, and how many outputs were the reference's.

    `source` is "device" or "emulator". `counts`: clock cycles of a device, instructions of an
    emulator, for every kernel; `clock_hz` is a device's.
    """

    source: str
    clock_hz: float
    total: int
    counts: tuple[int, ...]
    matching: int
    count: int


def run_on_board(
    folder: Path, port: str, *, baud: int = BAUD, timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """Ask a board for a run of an artifact; the facts with their source, as JSON data.

    Args:
        port: a device (/dev/ttyACM0, COM3) or a URL of pyserial (socket://host:port).
        timeout_s: how long to wait for the greeting, and for every further line.

    Raises ArtifactError for a folder that is no artifact for a microcontroller, ToolchainError for
    a port that cannot be opened, a board that does not answer, or runs something else.
    """
    report, source = _read_folder(folder)
    target = load_target(report["target"])
    with _opened(port, baud) as device:
        lines = _Lines(device, port, timeout_s)
        kind, clock_hz, found = _greet(lines)
        if found != model_id(source):
            raise ToolchainError(
                f"the board runs another network than {folder}",
                where=port,
                hint=f"make -C {folder} serial, and flash serial.elf",
            )
        counted = read_counts("\n".join(_until_end(lines)))
    run = _run(kind, clock_hz, counted, target)
    if len(run.counts) != len(report["kernels"]):
        raise ToolchainError(
            f"the board counted {len(run.counts)} kernels of {len(report['kernels'])}", where=port
        )
    return _facts(report, run, port)


def _read_folder(folder: Path) -> tuple[dict[str, Any], str]:
    """report.json and model.c."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        source = (folder / "model.c").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ArtifactError(
            "no artifact for a microcontroller",
            where=str(folder),
            hint="give the folder that hwprune compile wrote",
        ) from error
    if not isinstance(report, dict) or not {"target", "kernels", "model"} <= set(report):
        raise ArtifactError("report.json says no target and kernels", where=str(folder))
    return report, source


@contextmanager
def _opened(port: str, baud: int) -> Iterator[Any]:
    try:
        import serial
    except ImportError as error:
        raise ToolchainError(
            "pyserial is not installed", hint="pip install 'hwprune[serial]'"
        ) from error
    try:
        device = serial.serial_for_url(port, baudrate=baud, timeout=0.1, write_timeout=2.0)
    except (serial.SerialException, OSError, ValueError) as error:
        raise ToolchainError(
            f"cannot be opened: {error}",
            where=port,
            hint="is the board plugged in, and may this user read and write the port?",
        ) from error
    try:
        yield device
    except (serial.SerialException, OSError) as error:
        raise ToolchainError(f"the connection broke: {error}", where=port) from error
    finally:
        device.close()


class _Lines:
    """Lines that come over a port, each within a time."""

    def __init__(self, device: Any, port: str, timeout_s: float) -> None:
        self.device, self.port, self.timeout_s = device, port, timeout_s
        self._rest = b""

    def ask(self) -> None:
        """Say "run"."""
        self.device.write(b"run\n")

    def next(self, timeout_s: float) -> str | None:
        """The next line, or None where none comes in time."""
        end = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            if time.monotonic() > end:
                return None
            self._rest = (self._rest + self.device.read(self.device.in_waiting or 1))[-_LINE * 50 :]
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode("ascii", "replace").strip()


def _greet(lines: _Lines) -> tuple[str, float, int]:
    """(kind, clock, which network) of a board that answers."""
    end = time.monotonic() + lines.timeout_s
    while time.monotonic() < end:
        lines.ask()
        again = time.monotonic() + AGAIN_S
        while (left := min(again, end) - time.monotonic()) > 0:
            parts = (lines.next(left) or "").split()
            if len(parts) == 5 and parts[0] == GREETING:
                if parts[1] != VERSION or parts[2] not in (DEVICE, EMULATOR):
                    raise ToolchainError(
                        f"the board speaks version {parts[1]} of kind {parts[2]!r}, not {VERSION}",
                        where=lines.port,
                    )
                return parts[2], float(parts[3]), int(parts[4])
    raise ToolchainError(
        f"no board answered within {lines.timeout_s:.0f} s",
        where=lines.port,
        hint="is serial.elf flashed and started, and is this its port and baud rate?",
    )


def _until_end(lines: _Lines) -> Iterator[str]:
    while True:
        line = lines.next(lines.timeout_s)
        if line is None:
            raise ToolchainError(
                f"the board fell silent for {lines.timeout_s:.0f} s in the middle of a run",
                where=lines.port,
                hint="allow more time for large networks",
            )
        if line == END:
            return
        if line.startswith(FAULT):
            raise ToolchainError("the program on the board crashed", where=lines.port)
        yield line


def _run(kind: str, clock_hz: float, counted: Counted, target: Target) -> BoardRun:
    ticks = (counted.total, *counted.by_call)
    if kind == EMULATOR:
        ticks = tuple(instructions(target, t) for t in ticks)
    clock = clock_hz or mcu_of(target).clock_hz
    return BoardRun(kind, clock, ticks[0], ticks[1:], counted.matching, counted.count)


def _facts(report: dict[str, Any], run: BoardRun, port: str) -> dict[str, Any]:
    """What a run says, and where from: cycles and time of a device, instructions of an emulator."""
    unit = "cycles" if run.source == DEVICE else "instructions"
    facts: dict[str, Any] = {
        "model": report["model"], "target": report["target"], "source": run.source, "port": port,
        unit: run.total, "equal": run.matching, "test_vectors": run.count,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    if run.source == DEVICE:
        facts["clock_hz"] = run.clock_hz
        facts["latency_ms"] = 1e3 * run.total / run.clock_hz
    facts["kernels"] = [
        {"name": kernel["name"], "rule": kernel["rule"], "macs": kernel["macs"], unit: count}
        for kernel, count in zip(report["kernels"], run.counts, strict=True)
    ]
    if run.matching != run.count:
        raise HwpruneError(
            f"{run.count - run.matching} of {run.count} outputs are not the reference's",
            where=port,
            hint="check the compiler's options, the clock and the flash's wait states",
        )
    return facts
