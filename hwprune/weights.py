"""The smaller model's weights without pickle: `Program` <-> weights.safetensors, and `load_pruned`.

With plan.json beside it, the file rebuilds a pruned module of the user's own class.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from hwprune.capture import capture
from hwprune.errors import ArtifactError, ModelError
from hwprune.plan import Plan
from hwprune.program import Program
from hwprune.silent import apply_plan_to
from hwprune.stages import follow

WEIGHTS, PLAN = "weights.safetensors", "plan.json"
_FORMAT = "1"
_HINT = "write it again with hwprune prune"


@dataclass(frozen=True)
class Weights:
    """What weights.safetensors holds.

    `tensors` by name; `tied` maps the other names of a tensor to its first; `inputs` are
    (shape, dtype name) of the example inputs.
    """

    tensors: dict[str, Tensor]
    tied: dict[str, str]
    inputs: list[tuple[list[int], str]]


def weights_bytes(program: Program) -> bytes:
    """The content of weights.safetensors: every parameter and buffer, tied ones once."""
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in program.module.state_dict(keep_vars=True).items():
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor.detach().cpu().contiguous().clone()
    inputs = [[list(x.shape), str(x.dtype).removeprefix("torch.")] for x in program.inputs]
    metadata = {"format": _FORMAT, "inputs": json.dumps(inputs), "tied": json.dumps(tied)}
    return save_tensors(tensors, metadata)


def read_weights(path: Path) -> Weights:
    """Read weights.safetensors. Raises ArtifactError where it is absent or not one of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot be read: {error}", where=str(path), hint=_HINT) from error
    try:
        if metadata["format"] != _FORMAT:
            raise ValueError(f"format {metadata['format']}")
        tied, inputs = json.loads(metadata["tied"]), json.loads(metadata["inputs"])
        return Weights(tensors, dict(tied), [(list(shape), str(kind)) for shape, kind in inputs])
    except (KeyError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"not the weights of a pruned model: {error!r}", where=str(path), hint=_HINT
        ) from error


def load_pruned(model_factory: Callable[[], nn.Module], path: str | PathLike[str]) -> nn.Module:
    """A pruned module of the user's own class, in evaluation mode.

    Args:
        model_factory: makes the model as it was before pruning; its weights do not matter.
        path: a directory that `hwprune prune` or `hwprune compile` wrote.

    Branches that are gone are in it and compute zeros, one unit wide. Raises ArtifactError for a
    missing or corrupt file, PlanError where the factory makes another model than the one that was
    pruned, ModelError where its Python keeps an old size.
    """
    folder = Path(path)
    plan, weights = Plan.load(folder / PLAN), read_weights(folder / WEIGHTS)
    model: Any = model_factory()
    if not isinstance(model, nn.Module):
        raise ModelError(f"made a {type(model).__name__}, not an nn.Module", where="model_factory")
    dense = capture(model, tuple(_example(*given) for given in weights.inputs))
    smaller = follow(dense, plan, str(folder / PLAN))[-1].smaller
    fill(smaller, weights, folder / WEIGHTS)
    return apply_plan_to(model, dense, plan, smaller).eval()


def _example(shape: list[int], kind: str) -> Tensor:
    """An input of this shape and type; zero is a valid index wherever there is one."""
    dtype = getattr(torch, kind)
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.zeros(shape, dtype=dtype)


def fill(program: Program, weights: Weights, path: Path) -> None:
    """Give a program the file's tensors; all names and shapes must agree."""
    state = program.module.state_dict()
    given = weights.tensors | {n: weights.tensors[first] for n, first in weights.tied.items()}
    for name in sorted(state.keys() | given.keys()):
        if name not in given or name not in state:
            has = "file" if name in given else "model"
            raise ArtifactError(f"only the {has} has {name}", where=str(path), hint=_HINT)
        if given[name].shape != state[name].shape:
            raise ArtifactError(
                f"{name} has shape {tuple(given[name].shape)}, the plan's model "
                f"{tuple(state[name].shape)}",
                where=str(path),
                hint=_HINT,
            )
        state[name].copy_(given[name])
