"""A network in C as a program that tests itself: its sources, and a run on the emulated board.

In: a `CModel` and test vectors. Out: files, or a `Run` with counts of instructions for every kernel
and whether every output was that of the integer reference, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np

from hwprune.emulator.program import Elf, build_elf, c_files, instructions, run_elf
from hwprune.errors import ToolchainError
from hwprune.lower.mcu.model import KERNELS, CModel
from hwprune.mcu_vectors import Vectors, vectors_text
from hwprune.quantize import reference
from hwprune.target import Target

MAIN = "main.c"
VECTORS = "vectors.h"
HALVES = "HWPRUNE_HALVES"


@dataclass(frozen=True)
class Run:
    """What an emulated run counted: instructions of the first vector, also for every kernel.

    `differing`: the outputs that were not the reference's (where a tolerance is given: not within
    it), by position. `defines`: macros that
    the program was compiled with.
    """

    instructions: int
    by_call: tuple[int, ...]
    matching: int
    count: int
    elf: Elf
    differing: tuple[int, ...] = ()
    defines: tuple[str, ...] = ()

    @property
    def bit_exact(self) -> bool:
        """Whether every output was the reference's."""
        return self.matching == self.count


def make_vectors(model: CModel, inputs: Sequence[np.ndarray]) -> Vectors:
    """The reference's outputs for inputs of any batch."""
    return Vectors(tuple(inputs), reference.run(model.graph, inputs))


def random_inputs(model: CModel, count: int, seed: int = 0) -> list[np.ndarray]:
    """Random inputs over the whole range of their type (float32: normal)."""
    rng = np.random.default_rng(seed)
    arrays = []
    for name in model.graph.inputs:
        tensor = model.graph.by_name[name]
        shape = (count, *tensor.shape[1:])
        if tensor.dtype == "int8":
            arrays.append(rng.integers(-128, 128, shape).astype(np.int8))
        else:
            arrays.append(rng.standard_normal(shape).astype(np.float32))
    return arrays


def kernels_header() -> Path:
    """hwprune_kernels.h."""
    return _header(KERNELS)


def _header(name: str) -> Path:
    return Path(str(files("hwprune.lower.mcu") / "c" / name))


def sources(model: CModel, vectors: Vectors) -> dict[str, str]:
    """The text of every file that the model brings, by name."""
    return {
        "model.c": model.source,
        "model.h": model.header,
        **{name: _header(name).read_text(encoding="utf-8") for name in model.headers},
        VECTORS: vectors_text(model, vectors),
        MAIN: (c_files() / MAIN).read_text(encoding="utf-8"),
    }


def run_on_emulator(
    model: CModel,
    target: Target,
    vectors: Vectors,
    folder: Path,
    *,
    trace: bool = False,
    timeout_s: float = 300.0,
) -> Run:
    """Build and run in `folder`; `trace` counts every kernel and takes a few instructions for it.

    Raises ToolchainError for a missing compiler or emulator or an emulator that does not end,
    BudgetError where the program does not fit the device.
    """
    for name, text in sources(model, vectors).items():
        (folder / name).write_text(text, encoding="utf-8")
    elf, defines = _build(target, folder, ("HWPRUNE_TRACE",) if trace else ())
    text = run_elf(target, elf.path, timeout_s, accepted=(0, 1))
    return replace(parse_run(text, target, elf), defines=defines)


def _build(target: Target, folder: Path, defines: tuple[str, ...]) -> tuple[Elf, tuple[str, ...]]:
    """The program and the macros that it needs: HALVES where GCC runs out of registers."""
    parts = [folder / "model.c", folder / MAIN]
    try:
        return build_elf(target, parts, folder, defines), defines
    except ToolchainError as error:
        if "impossible constraint" not in str(error):
            raise
    defines = (*defines, HALVES)
    return build_elf(target, parts, folder, defines), defines


@dataclass(frozen=True)
class Counted:
    """What main.c printed: ticks of the first vector, in all and by kernel; outputs as in `Run`."""

    total: int
    by_call: tuple[int, ...]
    matching: int
    count: int
    differing: tuple[int, ...]


def read_counts(text: str) -> Counted:
    """What main.c printed. Raises ToolchainError for anything else."""
    total, match, ticks, differing = None, None, {}, set()
    try:
        for line in text.splitlines():
            parts = line.split()
            if parts[:1] == ["kernel"]:
                ticks[int(parts[1])] = int(parts[3])
            elif parts[:1] == ["model"]:
                total = int(parts[2])
            elif parts[:1] == ["differs"]:
                differing.add(int(parts[1]))
            elif parts[:1] == ["equal"]:
                match = int(parts[1]), int(parts[3])
    except (ValueError, IndexError):
        total = None
    if total is None or match is None or sorted(ticks) != list(range(len(ticks))):
        raise ToolchainError(f"the program on the board said {text[:80]!r}")
    by_call = tuple(ticks[i] for i in sorted(ticks))
    return Counted(total, by_call, *match, tuple(sorted(differing)))


def parse_run(text: str, target: Target, elf: Elf) -> Run:
    """A run from what the program printed. Raises ToolchainError for anything else."""
    found = read_counts(text)
    by_call = tuple(instructions(target, ticks) for ticks in found.by_call)
    total = instructions(target, found.total)
    return Run(total, by_call, found.matching, found.count, elf, found.differing)
