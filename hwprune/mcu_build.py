"""A network for a microcontroller: capture, prune, quantize, lower to C, run on an emulator.

In: a model and a target of kind "mcu". Out: `McuResult`, and the artifact's folder. Instructions
are counted by the emulator; cycles and milliseconds come from a model of the core and say so.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwprune.atomic import check_writable, replace_directory
from hwprune.capture import Program
from hwprune.emulator.boards import board_of
from hwprune.emulator.cycles import Estimate, estimate_cycles
from hwprune.emulator.toolchain import find_emulator, find_tool
from hwprune.errors import BudgetError, LoweringError, TargetError
from hwprune.given import Model, as_images, as_program
from hwprune.lower.mcu.model import CModel, lower_to_c
from hwprune.mcu_artifact import artifact_files
from hwprune.mcu_program import Run, Vectors, make_vectors, run_on_emulator
from hwprune.pipeline import prune
from hwprune.progress import Clock, Progress, Silent
from hwprune.quantize.config import QuantConfig
from hwprune.quantize.quantizer import Quantized, quantize_program
from hwprune.target import Target, load_target

REPORT = "report.json"
RANDOM_INPUTS = 32
TEST_VECTORS = 4


@dataclass(frozen=True)
class McuResult:
    """A network in C, what the emulator counted, what the core's model makes of it."""

    quantized: Quantized
    model: CModel
    vectors: Vectors
    run: Run
    estimate: Estimate
    report: dict[str, Any]


def compile_mcu(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    out: str | PathLike[str],
    target: str = "cortex-m4",
    calibrate: Tensor | Sequence[Tensor] | None = None,
    budgets: Mapping[str, Any] | None = None,
    pruning: Mapping[str, Any] | None = None,
    config: QuantConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    name: str = "",
) -> McuResult:
    """Compile a network to int8 C and write its folder, checked on the emulated board.

    Args:
        calibrate: unlabelled inputs, (N, …); without, random ones, which the report says.
        budgets: `macs`, `params`, `threshold` or `plan` of `hwprune.prune`, or none.
        pruning: other arguments of `hwprune.prune`.
        config: how to quantize.

    Raises a HwpruneError subclass for everything that a user can cause: no microcontroller, no
    compiler or emulator, operators without a kernel, a network that does not fit.
    """
    check_writable(out)
    chosen = _mcu_target(target)
    asked = {key: value for key, value in (budgets or {}).items() if value is not None}
    if "latency" in asked:
        raise BudgetError(
            f"kernels are not priced on {chosen.name}: no latency budget",
            where="latency",
            hint="give macs or params; the report estimates the latency",
        )
    clock = Clock(progress or Silent())
    torch.manual_seed(seed)
    with clock.stage("capture"):
        program = as_program(model, inputs, name)
        images = as_images(calibrate, program)
    if asked:
        options = dict(pruning or {})
        program = prune(
            program, calibrate=images, seed=seed, progress=progress, **asked, **options
        ).program
    with clock.stage("quantize"):
        given, said = _calibration(program, images, seed)
        quantized = quantize_program(program, given, config)
    with clock.stage("compile"):
        lowered = lower_to_c(quantized.graph, chosen)
    vectors = make_vectors(lowered, quantized.integers(given[:TEST_VECTORS]))
    with clock.stage("emulate"):
        run, estimate = emulate(lowered, chosen, vectors)
    report = describe(lowered, chosen, run, estimate, said)
    _write(lowered, chosen, vectors, run, report, out)
    return McuResult(quantized, lowered, vectors, run, estimate, report)


def emulate(model: CModel, target: Target, vectors: Vectors) -> tuple[Run, Estimate]:
    """Run on the emulated board. Raises LoweringError unless every output is the reference's."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_on_emulator(model, target, vectors, Path(folder))
        estimate = estimate_cycles(target, run.elf, run.instructions, model.weight_reads)
    if not run.bit_exact:
        raise LoweringError(
            f"{run.count - run.matching} of {run.count} outputs on {target.name} differ from the "
            "integer reference",
            hint="a defect of hwprune or of the C compiler",
        )
    return run, estimate


def describe(
    model: CModel, target: Target, run: Run, estimate: Estimate, calibration: str
) -> dict[str, Any]:
    """The facts of a compiled network, as report.json has them."""
    memory = model.storage.memory
    return {
        "model": model.graph.name,
        "target": target.name,
        "calibration": calibration,
        "macs": model.macs,
        "instructions": run.instructions,
        "instructions_source": "emulator",
        "instructions_per_mac": round(run.instructions / max(model.macs, 1), 4),
        "cycles": estimate.cycles,
        "latency_ms": round(estimate.latency_ms, 4),
        "latency_source": "model",
        "latency_model": estimate.how,
        "arena_bytes": model.arena_bytes,
        "arena_lower_bound_bytes": memory.least_bytes,
        "arena_peak": model.peak,
        "in_place": list(model.storage.in_place),
        "constant_bytes": model.constant_bytes,
        "flash_bytes": run.elf.flash_bytes,
        "sram_bytes": run.elf.sram_bytes,
        "bit_exact": run.bit_exact,
        "test_vectors": run.count,
        "kernels": [
            {"name": c.name, "rule": c.rule, "macs": c.macs, "scratch_bytes": c.scratch_bytes}
            for c in model.calls
        ],
    }


def _mcu_target(name: str) -> Target:
    """The target, with its compiler and emulator found."""
    target = load_target(name)
    if target.kind != "mcu":
        raise TargetError(f"target {name!r} is no microcontroller (kind {target.kind!r})")
    board_of(target)
    find_tool(target, "gcc")
    find_emulator()
    return target


def _calibration(program: Program, images: Tensor | None, seed: int) -> tuple[Tensor, str]:
    """Inputs to calibrate with, and what the report says of them."""
    if images is not None:
        return images, f"{len(images)} inputs given"
    shape = tuple(int(size) for size in program.inputs[0].shape[1:])
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(RANDOM_INPUTS, *shape, generator=generator)
    return made, f"{RANDOM_INPUTS} random normal inputs: none were given"


def _write(
    model: CModel,
    target: Target,
    vectors: Vectors,
    run: Run,
    report: dict[str, Any],
    out: str | PathLike[str],
) -> None:
    facts = {
        "FLASH": f"{report['flash_bytes']} bytes of {target.flash_bytes}",
        "INSTRUCTIONS": f"{report['instructions']} (emulator), {report['macs']} "
        "multiply-accumulates",
        "LATENCY": f"{report['latency_ms']:.2f} ms (model: {report['latency_model']})",
        "CALIBRATION": report["calibration"],
        "DEFINES": " ".join(f"-D{name}" for name in run.defines),
    }
    with replace_directory(out) as staging:
        for file, text in artifact_files(model, target, vectors, facts).items():
            (staging / file).write_text(text, encoding="utf-8")
        text = json.dumps(report, indent=1, default=_plain)
        (staging / REPORT).write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
