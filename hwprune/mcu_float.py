"""float32 on a microcontroller: capture, prune, lower to C, run on an emulator, write.

In: a model and a target of kind "mcu". Out: `FloatResult`, and the artifact's folder. What the
emulated board makes is compared with PyTorch's outputs. The emulator counts instructions; cycles
and milliseconds come from a model of the core and say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwprune.atomic import check_writable
from hwprune.capture import Program
from hwprune.emulator.cycles import Estimate
from hwprune.errors import BudgetError, LoweringError, ModelError
from hwprune.float_emit import emit_floats
from hwprune.given import Model, as_images, as_program
from hwprune.lower.mcu.model import CModel, lower_to_c
from hwprune.mcu_folder import describe, write_folder
from hwprune.mcu_price.bounds import check_device
from hwprune.mcu_price.measure import roomy
from hwprune.mcu_price.network import TEST_VECTORS, emulate, emulated_target
from hwprune.mcu_program import Run
from hwprune.mcu_vectors import TOLERANCE, Vectors
from hwprune.pipeline import prune
from hwprune.progress import Clock, Progress, Silent
from hwprune.quantize.quantizer import fold_for_integers
from hwprune.recover.sweep import as_batches
from hwprune.target import FLOAT32

_BUDGETS = ("macs", "params", "threshold", "plan")


@dataclass(frozen=True)
class FloatResult:
    """A float32 network in C, what the emulator counted, what the core's model makes of it."""

    model: CModel
    vectors: Vectors
    run: Run
    estimate: Estimate
    report: dict[str, Any]


def compile_mcu_float(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    out: str | PathLike[str],
    target: str = "cortex-m4",
    calibrate: Tensor | Sequence[Tensor] | None = None,
    budgets: Mapping[str, Any] | None = None,
    pruning: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    name: str = "",
) -> FloatResult:
    """Compile a network to float32 C and write its folder, checked on the emulated board.

    Args:
        calibrate: unlabelled inputs, (N, …), to prune with and to test on; without, random ones.
        budgets: `macs`, `params`, `threshold` or `plan` of `hwprune.prune`, or none.
        pruning: other arguments of `hwprune.prune`.

    Raises a HwpruneError subclass for everything that a user can cause: no microcontroller, no
    compiler or emulator, operators without a kernel, a network that does not fit.
    """
    check_writable(out)
    chosen = emulated_target(target)
    asked = _checked(budgets or {})
    clock = Clock(progress or Silent())
    torch.manual_seed(seed)
    with clock.stage("capture"):
        program = as_program(model, inputs, name)
        images = as_images(calibrate, program)
    _check_type(program)
    if asked:
        options = dict(pruning or {})
        program = prune(
            program, calibrate=images, seed=seed, progress=progress, **asked, **options
        ).program
    with clock.stage("compile"):
        lowered = lower_to_c(emit_floats(fold_for_integers(program)), roomy(chosen))
    with clock.stage("emulate"):
        made = emulate(lowered, chosen, _vectors(program, images, seed))
    check_device(made, chosen, priced=False)
    report = {
        **describe(made, chosen, "none: float32"), "dtype": FLOAT32, "tolerance": TOLERANCE,
    }  # fmt: skip
    write_folder(made, chosen, report, out)
    return FloatResult(made.model, made.vectors, made.run, made.estimate, report)


def _checked(budgets: Mapping[str, Any]) -> dict[str, Any]:
    asked = {key: value for key, value in budgets.items() if value is not None}
    for key in asked:
        if key not in _BUDGETS:
            raise BudgetError(
                f"no {key} budget for float32 on a microcontroller",
                where=key,
                hint="int8 kernels alone are priced: give macs or params, or compile for int8",
            )
    return asked


def _check_type(program: Program) -> None:
    kinds = {value.dtype for value in (*program.inputs, *program.module.parameters())}
    if kinds != {torch.float32}:
        found = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise LoweringError(f"only float32 networks, this one is {found}", where=program.name)


def _vectors(program: Program, images: Tensor | None, seed: int) -> Vectors:
    """Inputs as the C code takes them, and PyTorch's outputs."""
    batch_size, *sizes = (int(size) for size in program.inputs[0].shape)
    count = max(TEST_VECTORS, batch_size)
    if images is None:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(count, *sizes, generator=generator)
    given = images[:count]
    made: list[list[Tensor]] = []
    with torch.no_grad():
        for batch in as_batches(given.split(batch_size), program):
            result = program.module(*batch)
            made.append([result] if isinstance(result, Tensor) else list(result))
    outputs = tuple(_channels_last(torch.cat(parts)) for parts in zip(*made, strict=True))
    if not all(np.isfinite(o).all() for o in outputs):
        raise ModelError(
            "its outputs are not finite on the test inputs",
            where=program.name,
            hint="give inputs like those that it will get with --calibrate",
        )
    count = min(TEST_VECTORS, len(outputs[0]))
    return Vectors((_channels_last(given[:count]),), tuple(o[:count] for o in outputs), TOLERANCE)


def _channels_last(tensor: Tensor) -> np.ndarray:
    tensor = tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor
    return np.ascontiguousarray(tensor.numpy(), np.float32)
