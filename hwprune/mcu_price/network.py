"""A network on a microcontroller: quantized, lowered to C, linked, run on the emulated board.

In: a `Program`, a `Target` of kind "mcu", inputs to calibrate with. Out: a `Network` with exact
counts and sizes; what is known of any network in C is its part `Emulated`. It is linked with all
the memory of the board, so that one that is too large for the device still says by how much.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hwprune.capture import Program
from hwprune.emulator.boards import board_of
from hwprune.emulator.cycles import Estimate, estimate, measure_phases
from hwprune.emulator.toolchain import find_emulator, find_host_compiler, find_tool
from hwprune.errors import LoweringError, TargetError
from hwprune.lower.mcu.model import CModel, lower_to_c
from hwprune.mcu_price.fallbacks import cut, cut_vectors, fallbacks, steps_apart
from hwprune.mcu_price.measure import roomy
from hwprune.mcu_program import Run, Vectors, make_vectors, run_on_emulator
from hwprune.quantize.config import QuantConfig
from hwprune.quantize.graph import IntegerGraph
from hwprune.quantize.quantizer import Quantized, quantize_program
from hwprune.target import Target, load_target

RANDOM_INPUTS = 32
TEST_VECTORS = 4


@dataclass(frozen=True)
class Emulated:
    """A network in C, what the emulator counted, what the core's model makes of it."""

    model: CModel
    vectors: Vectors
    run: Run
    estimate: Estimate

    @property
    def bit_exact(self) -> bool:
        """Whether every output was the reference's to the bit."""
        return self.run.bit_exact and not (self.vectors.tolerance or self.vectors.steps)

    @property
    def latency_us(self) -> float:
        """Microseconds of one inference by the core's model."""
        return 1e3 * self.estimate.latency_ms

    @property
    def sram_bytes(self) -> int:
        """SRAM of the linked program: the arena, its outputs and the stack."""
        return self.run.elf.sram_bytes

    @property
    def flash_bytes(self) -> int:
        """Flash of the linked program: code and constants."""
        return self.run.elf.flash_bytes


@dataclass(frozen=True)
class Network(Emulated):
    """The same of a quantized program."""

    program: Program
    quantized: Quantized


def emulated_target(name: str) -> Target:
    """The target, with its board, compilers and emulator found.

    Raises TargetError for one that is no microcontroller, ToolchainError naming what is missing.
    """
    target = load_target(name)
    if target.kind != "mcu":
        raise TargetError(f"target {name!r} is no microcontroller (kind {target.kind!r})")
    board_of(target)
    find_tool(target, "gcc")
    find_host_compiler()
    find_emulator()
    return target


def calibration_inputs(program: Program, images: Tensor | None, seed: int) -> tuple[Tensor, str]:
    """Inputs to calibrate with, and what the report says of them."""
    if images is not None:
        return images, f"{len(images)} inputs given"
    shape = tuple(int(size) for size in program.inputs[0].shape[1:])
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(RANDOM_INPUTS, *shape, generator=generator)
    return made, f"{RANDOM_INPUTS} random normal inputs: none were given"


def build_network(
    program: Program, target: Target, given: Tensor, config: QuantConfig | None = None
) -> Network:
    """Quantize, lower, link and run a network, checked against the integer reference.

    Raises BudgetError where not even the emulated board has memory for it, LoweringError for
    operators without a kernel and where an output is not the reference's.
    """
    quantized = quantize_program(program, given, config)
    model = lower_to_c(quantized.graph, roomy(target))
    inputs = quantized.integers(given[:TEST_VECTORS])
    check_fallbacks(quantized.graph, target, inputs)
    vectors = make_vectors(model, inputs)
    vectors = replace(vectors, steps=steps_apart(quantized.graph, inputs))
    built = emulate(model, target, vectors)
    return Network(model, vectors, built.run, built.estimate, program, quantized)


def check_fallbacks(graph: IntegerGraph, target: Target, inputs: Sequence[np.ndarray]) -> None:
    """Hold every float32 operator to PyTorch, and all others, around them, to the reference.

    Raises LoweringError naming what differs on the emulated board.
    """
    if fallbacks(graph):
        emulate(lower_to_c(cut(graph), roomy(target)), target, cut_vectors(graph, inputs))


def emulate(model: CModel, target: Target, vectors: Vectors) -> Emulated:
    """Run on the emulated board. Raises LoweringError unless every output is what is expected."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_on_emulator(model, roomy(target), vectors, Path(folder))
        phase = measure_phases(target, run.elf)[0]
        found = estimate(target, phase.core_cycles, model.weight_reads)
    if run.matching != run.count:
        raise _differs(run, target, model, vectors)
    return Emulated(model, vectors, run, found)


def _differs(run: Run, target: Target, model: CModel, vectors: Vectors) -> LoweringError:
    which = f"{run.count - run.matching} of {run.count} outputs on {target.name}"
    names = ", ".join(model.graph.outputs[i] for i in run.differing)
    if vectors.tolerance:
        return LoweringError(
            f"{which} ({names}) are further than {vectors.tolerance} from PyTorch's",
            hint="a defect of hwprune, of TVM's importer or of the C compiler, or numbers beyond "
            "float32",
        )
    more = f" by more than {vectors.steps} steps" if vectors.steps else ""
    return LoweringError(
        f"{which} differ from the integer reference{more}",
        hint="a defect of hwprune or of the C compiler",
    )
