"""What a user gives, made what the flow takes: a model in any of its forms, unlabelled inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hwprune.capture import Program, capture
from hwprune.errors import HwpruneError

HELD_OUT = 4  # every fourth calibration image judges the result and is not used to recover
RECOVERED_AT_ONCE = 16  # images of a batch that layers are reconstructed from
Model = nn.Module | Program | torch.export.ExportedProgram | str | Path


def as_program(model: Model, inputs: Sequence[Tensor] | None, name: str) -> Program:
    """The model, captured if it is not yet."""
    if isinstance(model, Program):
        return model
    given = None if inputs is None else tuple(inputs)
    return capture(model, given, name=name)


def as_images(calibrate: Tensor | Sequence[Tensor] | None, program: Program) -> Tensor | None:
    """Unlabelled inputs as one tensor of the input's dtype.

    Raises HwpruneError where they do not fit the model's input or hold what is not finite.
    """
    if calibrate is None:
        return None
    if len(program.inputs) != 1:
        raise HwpruneError("calibration needs a model with one input", where="calibrate")
    wanted = program.inputs[0]
    parts = [calibrate] if isinstance(calibrate, Tensor) else list(calibrate)
    if not parts or sum(len(part) for part in parts) == 0:
        raise HwpruneError("there are no calibration inputs", where="calibrate")
    for part in parts:
        if not isinstance(part, Tensor):
            raise HwpruneError(
                f"calibration inputs are tensors, not {type(part).__name__}",
                where="calibrate",
                hint="pass them without labels",
            )
        if part.shape[1:] != wanted.shape[1:]:
            found, takes = tuple(part.shape), ("N", *wanted.shape[1:])
            raise HwpruneError(
                f"calibration inputs have shape {found}, the model takes "
                f"({', '.join(map(str, takes))})",
                where="calibrate",
            )
        if part.is_floating_point() != wanted.is_floating_point():
            raise HwpruneError(
                f"calibration inputs are {part.dtype}, the model takes {wanted.dtype}",
                where="calibrate",
            )
    images = torch.cat(parts).to(wanted.dtype)
    if images.is_floating_point() and not bool(images.isfinite().all()):
        raise HwpruneError("calibration inputs hold values that are not finite", where="calibrate")
    return images


def recover_part(images: Tensor) -> Tensor:
    """The images that recovery may see."""
    return images[[i for i in range(len(images)) if i % HELD_OUT or len(images) < HELD_OUT]]
