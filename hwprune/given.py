"""What a user gives, made what the flow takes: a model in any of its forms, unlabelled inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hwprune.capture import Program, capture
from hwprune.errors import HwpruneError

Model = nn.Module | Program | torch.export.ExportedProgram | str | Path


def as_program(model: Model, inputs: Sequence[Tensor] | None, name: str) -> Program:
    """The model, captured if it is not yet."""
    if isinstance(model, Program):
        return model
    given = None if inputs is None else tuple(inputs)
    return capture(model, given, name=name)


def as_images(calibrate: Tensor | Sequence[Tensor] | None, program: Program) -> Tensor | None:
    """Unlabelled inputs as one tensor; checked against the model's input."""
    if calibrate is None:
        return None
    images = calibrate if isinstance(calibrate, Tensor) else torch.cat(list(calibrate))
    wanted = tuple(program.inputs[0].shape[1:])
    if tuple(images.shape[1:]) != wanted or len(images) == 0:
        raise HwpruneError(
            f"calibration inputs have shape {tuple(images.shape)}, the model takes (N, {wanted})",
            where="calibrate",
        )
    if len(program.inputs) != 1:
        raise HwpruneError("calibration needs a model with one input", where="calibrate")
    return images
