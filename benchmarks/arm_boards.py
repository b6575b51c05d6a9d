"""The boards of published tables: their cores, how many were used, their clocks.

In: names of devices and cores. Out: the devices to judge, the `Machine` that their rows are of.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hwprune.errors import TableError, TargetError
from hwprune.predict.machine import Machine
from hwprune.predict.published import MeasuredConv
from hwprune.target import Target, load_target

ARM32_REGISTERS = 16  # of 128 bits, in code for 32-bit Arm


@dataclass(frozen=True)
class Board:
    """What a device of published tables is: its core, how many were used, their clock."""

    core: str
    threads: int
    clock_hz: float
    network_table: str = ""  # its name in the end-to-end table


# TVM's own benchmark page, and the data sheets of the chips.
BOARDS = {
    "rk3399": Board("cortex-a72", 2, 1.8e9, "Firefly RK3399"),
    "bcm2837": Board("cortex-a53", 4, 1.2e9, "Raspberry Pi 3B"),
    "rasp3b": Board("cortex-a53", 4, 1.2e9, "Raspberry Pi 3B"),
    "bcm2711": Board("cortex-a72", 4, 1.5e9),
    "rasp4b": Board("cortex-a72", 4, 1.5e9),
    "ultra96": Board("cortex-a53", 4, 1.2e9),
    "mate10": Board("cortex-a73", 4, 2.36e9),
    "p20pro": Board("cortex-a73", 4, 2.36e9, "Huawei P20 Pro"),
    "pixel2": Board("kryo-280", 4, 2.35e9, "Google Pixel2"),
    "pynq": Board("cortex-a9", 2, 0.65e9, "Xilinx PYNQ"),
}
# Cores that are no target, and the target whose description is nearest: calibration does the rest.
NEAREST = {
    "cortex-a7": "cortex-a53",
    "cortex-a9": "cortex-a53",
    "cortex-a35": "cortex-a53",
    "cortex-a57": "cortex-a72",
    "cortex-a73": "cortex-a72",
    "kryo-280": "cortex-a72",
    "cortex-a75": "cortex-a76",
    "cortex-a77": "cortex-a76",
    "cortex-a78": "cortex-a76",
}


def choose_devices(rows: Sequence[MeasuredConv], core: str, device: str | None) -> list[str]:
    """The devices to judge: the one asked for, else those of the core, else the only one.

    Raises TableError where it is not clear which.
    """
    names = sorted({row.device for row in rows})
    if device is not None:
        if device not in names:
            raise TableError(f"has no rows of {device!r}", hint=f"it has {', '.join(names)}")
        return [device]
    of_core = [name for name in names if name in BOARDS and BOARDS[name].core == core]
    if not of_core and len(names) > 1:
        raise TableError(f"has several devices: {', '.join(names)}", hint="pass --device")
    return of_core or names


def target_of(core: str) -> Target:
    """The target of a core, or of the nearest that is one. Raises TargetError."""
    return load_target(NEAREST.get(core, core))


def machine_of(options: argparse.Namespace, device: str, abi: str) -> Machine:
    """The core with the board's clock and cores, and the registers of the rows' ABI."""
    target = target_of(options.core)
    board = BOARDS.get(device)
    threads = board.threads if board else target.cores
    threads = threads if options.threads is None else options.threads
    if threads < 1:
        raise TargetError(f"{threads} threads", where="--threads", hint="at least 1")
    clock_hz = board.clock_hz if board else target.clock_hz
    if options.clock_ghz is not None:
        clock_hz = 1e9 * options.clock_ghz
    machine = Machine.of(
        replace(target, cores=max(threads, target.cores), clock_hz=clock_hz), threads
    )
    return replace(machine, registers=ARM32_REGISTERS) if abi == "armv7" else machine
