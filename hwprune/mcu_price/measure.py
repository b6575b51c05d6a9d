"""`measure_kernels`: fill a microcontroller's table with kernels run on its emulated board.

Many kernels are one program and one run: QEMU counts how often every instruction of each ran, the
model of the core (`emulator/cycles.py`) makes cycles of them, the target's clock microseconds. A
finished batch is committed at once; a second run goes on where a killed one stopped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hwprune.emulator.boards import board_of
from hwprune.emulator.cycles import Phase, estimate, measure_phases
from hwprune.emulator.program import Elf, build_elf
from hwprune.emulator.toolchain import mcu_of
from hwprune.errors import ToolchainError
from hwprune.lower.mcu.emit import CKernel
from hwprune.lower.mcu.rules import kernel_for
from hwprune.lower.spec import Workload
from hwprune.mcu_price.kernels import example
from hwprune.mcu_price.program import program_text
from hwprune.mcu_program import HALVES, kernels_header
from hwprune.measure import Measured, by_halves, fill
from hwprune.table import LatencyTable, Row
from hwprune.target import Target

BATCH = 32  # kernels in a program
SOURCE = "emulator"
THREADS = 1


def measure_kernels(
    workloads: Iterable[Workload],
    target: Target,
    table: LatencyTable,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Put a row for every kernel that the table lacks into it.

    A kernel that cannot be compiled or run is recorded as failed and reported, not raised. Raises
    ToolchainError for a missing compiler or emulator.
    """

    def run_batch(batch: Sequence[Workload]) -> Iterator[Row]:
        return by_halves(batch, lambda some: _rows(some, target), THREADS, source=SOURCE)

    return fill(table, workloads, THREADS, BATCH, run_batch, progress)


def kernel_of(workload: Workload, target: Target) -> CKernel:
    """The kernel of a workload on a target. Raises LoweringError where it has none."""
    made = example(workload)
    return kernel_for(made.operator, made.inputs, made.output, target.isa)


def run_kernels(kernels: Sequence[CKernel], target: Target) -> list[Phase]:
    """What every kernel executes, run in turn on the emulated board.

    Raises ToolchainError for what compiler or emulator complain of, BudgetError where the kernels
    need more memory than the board has.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "hwprune_kernels.h").write_text(kernels_header().read_text("utf-8"), "utf-8")
        (place / "main.c").write_text(program_text(kernels), "utf-8")
        found = measure_phases(target, _build(roomy(target), place))
    if len(found) != len(kernels):
        raise ToolchainError(f"{len(kernels)} kernels ran in {len(found)} phases")
    return found


def roomy(target: Target) -> Target:
    """The target with all the memory of its emulated board."""
    board = board_of(target)
    flash, sram = board.code.size, board.data.size
    mcu = replace(mcu_of(target), flash_bytes=flash, sram_bytes=sram)
    name = f"the emulated board of {target.name}"
    return replace(target, name=name, mcu=mcu, flash_bytes=flash, sram_bytes=sram)


def _build(target: Target, folder: Path) -> Elf:
    """The program; with HALVES where GCC runs out of registers."""
    try:
        return build_elf(target, [folder / "main.c"], folder)
    except ToolchainError as error:
        if "impossible constraint" not in str(error):
            raise
    return build_elf(target, [folder / "main.c"], folder, (HALVES,))


def _rows(workloads: Sequence[Workload], target: Target) -> list[Row]:
    """Rows of kernels that are one program."""
    kernels = [kernel_of(workload, target) for workload in workloads]
    phases = run_kernels(kernels, target)
    return [
        _row(workload, kernel, phase, target)
        for workload, kernel, phase in zip(workloads, kernels, phases, strict=True)
    ]


def _row(workload: Workload, kernel: CKernel, phase: Phase, target: Target) -> Row:
    """Exact and repeatable: the median is all there is."""
    found = estimate(target, phase.core_cycles, kernel.weight_reads)
    us = 1e3 * found.latency_ms
    return Row(workload, THREADS, us, us, us, 1, source=SOURCE)
