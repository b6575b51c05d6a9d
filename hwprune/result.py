"""What a run gives back, and the files that it is written to."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from hwprune.atomic import replace_directory
from hwprune.capture import Program
from hwprune.coupling import Coupling, Group
from hwprune.deploy import Artifact
from hwprune.latency import Outcome
from hwprune.plan import Plan
from hwprune.report import write_report
from hwprune.silent import apply_plan_to
from hwprune.target import Target
from hwprune.verify import Certificate
from hwprune.weights import PLAN, WEIGHTS, weights_bytes


@dataclass(frozen=True)
class PruneResult:
    """A pruned network.

    `module` is a trainable GraphModule; `kept` maps parameter names to kept indices by dimension;
    `report` is the dict behind report.json.
    """

    module: fx.GraphModule
    plan: Plan
    kept: Mapping[str, Mapping[int, np.ndarray]]
    report: dict[str, Any]
    program: Program
    dense: Program
    coupling: Coupling
    certificate: Certificate
    target: Target
    threads: int
    outcome: Outcome

    def apply_to(self, model: nn.Module) -> nn.Module:
        """Make the model that was pruned this smaller network, in place; returns it.

        Its tensors become copies of this result's (make optimisers anew), its layers' sizes
        follow. Branches that are gone stay in it and compute zeros, one unit wide. Raises
        ModelError, naming the source line, where the model's Python keeps an old size, or where it
        is another model; nothing is changed then.
        """
        return apply_plan_to(model, self.dense, self.plan, self.program)


@dataclass(frozen=True)
class ProfileResult:
    """What `profile` did: rows measured and reused, and the table they are in.

    `failed` has a line for every kernel that could not be measured, with the reason.
    Of a device that is not here rows are `predicted`, by a `model` in a line. `board` is what was
    measured on, empty for this machine; `warnings` make its rows doubtful.
    """

    measured: int
    reused: int
    failed: tuple[str, ...]
    seconds: float
    table: str
    predicted: int = 0
    model: str = ""
    board: str = ""
    warnings: tuple[str, ...] = ()


def save(result: PruneResult, artifact: Artifact, out: str | PathLike[str]) -> None:
    """Write model.so and manifest.json beside what `save_pruned` writes."""
    artifact.save(out, result_files(result))


def save_pruned(result: PruneResult, out: str | PathLike[str]) -> None:
    """Write model.pt2, weights.safetensors, plan.json, report.json and report.html."""
    with replace_directory(out) as staging:
        for name, data in result_files(result).items():
            (staging / name).write_bytes(data)


def result_files(result: PruneResult) -> dict[str, bytes]:
    """The files of the smaller model and its report by name."""
    return {
        "model.pt2": export_bytes(result.program),
        WEIGHTS: weights_bytes(result.program),
        PLAN: result.plan.to_json().encode(),
        **write_report(result.report),
    }


def export_bytes(program: Program) -> bytes:
    """The content of a `.pt2` file."""
    buffer = io.BytesIO()
    torch.export.save(export_program(program), buffer)
    return buffer.getvalue()


def export_program(program: Program) -> torch.export.ExportedProgram:
    """The program as torch.export writes it, with a dynamic batch where it has one.

    Some networks, traced with a batch of two, are guarded against a batch of one (halves of two
    images joined have one each): where their own example is refused, they keep its sizes.
    """
    module = program.module
    module.eval()
    if program.dynamic_batch:
        inputs = tuple(torch.cat([x, x]) if x.shape[0] == 1 else x for x in program.inputs)
        dynamic = tuple({0: torch.export.Dim.AUTO} for _ in inputs)
        exported = torch.export.export(module, inputs, dynamic_shapes=dynamic)
        if _takes(exported, program.inputs):
            exported._example_inputs = (program.inputs, {})  # batch of the user's own example
            return exported
    return torch.export.export(module, program.inputs)


def _takes(exported: torch.export.ExportedProgram, inputs: tuple[Tensor, ...]) -> bool:
    """Whether an exported program's guards on sizes let inputs pass."""
    guards = getattr(exported.module(), "_guards_fn", None)
    if guards is None:
        return True
    try:
        guards(*inputs)
    except AssertionError:
        return False
    return True


def unit_size(group: Group) -> int:
    """How many rows of the layer that a group is named after one unit is; a head has many."""
    named = [s for s in group.sites if s.parameter.startswith(group.name.partition("#")[0])]
    rows = [s for s in named if s.dim == 0] or named or list(group.sites)
    return int(group.index[rows[0]].shape[1])


def describe_groups(program: Program, coupling: Coupling) -> dict[str, Any]:
    """Groups with their members, removable branches, what is frozen and why, as JSON data."""
    return {
        "model": program.name,
        "params": sum(p.numel() for p in program.module.parameters()),
        "groups": [
            {
                "name": g.name,
                "width": g.width,
                "unit_size": unit_size(g),
                "through_norm_statistics": g.through_norm_statistics,
                "members": [
                    {"parameter": s.parameter, "dim": s.dim, "per_unit": int(i.shape[1])}
                    for s, i in sorted(g.index.items())
                ],
            }
            for g in coupling.groups
        ],
        "branches": [
            {
                "name": b.name,
                "sum": b.add,
                "groups": list(b.groups),
                "params": sum(
                    p.numel() for n, p in program.module.named_parameters() if n in b.parameters
                ),
            }
            for b in coupling.branches
        ],
        "frozen": [
            {
                "name": f.name,
                "width": f.width,
                "reason": f.reason,
                "node": f.node,
                "source": f.source,
            }
            for f in coupling.frozen
        ],
    }
