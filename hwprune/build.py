"""Build: `Program` + `Target` -> a checked `Artifact`, in a temporary directory until it is saved.

The compiled network is always compared with PyTorch on the example inputs: TVM's importer and
our schedules are trusted only as far as their outputs agree.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hwprune.atomic import check_room
from hwprune.capture import Program, specialize
from hwprune.deploy import LIBRARY, Artifact, Manifest, TensorInfo
from hwprune.emulate import run_flat
from hwprune.errors import LoweringError
from hwprune.lower import Lowered, lower
from hwprune.target import Target, required_isa
from hwprune.toolchain import emulator, linker, runs_here

CODE_BYTES = 4 << 20
TOLERANCE = 1e-4  # relative to the largest output, float32


@dataclass(frozen=True)
class Build:
    """A compiled network, how it was lowered, and its largest error against PyTorch.

    The code ran here (`checked_by` is ""), or under the emulator that `checked_by` names. None
    where it did not run: it is another machine's, and there is no emulator.
    """

    artifact: Artifact
    lowered: Lowered
    max_rel_error: float | None
    checked_by: str = ""


def build(program: Program, target: Target, threads: int) -> Build:
    """Lower, compile, load and check a program; a foreign target's under an emulator, if any.

    Raises LoweringError if the compiled outputs differ from PyTorch's by more than `TOLERANCE`
    or a tensor is empty or too large, ArtifactError if the code does not run on this CPU,
    ToolchainError if no C++ compiler is there to link the library, ArtifactError if there is no
    room for it.
    """
    linker(target)
    check_room(tempfile.gettempdir(), _temporary_bytes(program))
    static = specialize(program)
    lowered = lower(static, target, threads)
    reference = run_torch(static)
    directory = Path(tempfile.gettempdir()) / f"hwprune-{uuid.uuid4().hex}"
    try:
        directory.mkdir(mode=0o700)
        lowered.export(directory / LIBRARY)
        manifest = _manifest(static, reference, target, threads)
        here = target.runner == "local" or runs_here(target)
        artifact = Artifact(directory, manifest, loaded=here)
        weakref.finalize(artifact, shutil.rmtree, directory, ignore_errors=True)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    inputs = [t.detach().numpy() for t in static.inputs]
    if artifact.loaded:
        result = artifact(*inputs)
        found = list(result) if isinstance(result, tuple) else [result]
        return Build(artifact, lowered, compare(found, static, reference))
    runner = emulator(target)
    if runner is None:
        return Build(artifact, lowered, None)
    found = run_flat(directory / LIBRARY, lowered.flat(), target, inputs)
    return Build(artifact, lowered, compare(found, static, reference), runner.name)


def run_torch(program: Program) -> tuple[Tensor, ...]:
    """The program's outputs on its example inputs, flattened, without gradients."""
    with torch.no_grad():
        result = program.module(*program.inputs)
    return tuple(t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor))


def toolchain() -> dict[str, str]:
    """Versions of what produced an artifact."""
    names = ("hwprune", "torch", "apache-tvm", "apache-tvm-ffi", "numpy")
    return {name: version(name) for name in names}


def _temporary_bytes(program: Program) -> int:
    """What objects and library take: the weights twice, and code."""
    return 2 * sum(p.numel() * p.element_size() for p in program.module.parameters()) + CODE_BYTES


def _manifest(
    program: Program, outputs: tuple[Tensor, ...], target: Target, threads: int
) -> Manifest:
    placeholders = [n.name for n in program.module.graph.nodes if n.op == "placeholder"]
    return Manifest(
        model=program.name,
        target=target.name,
        isa=required_isa(target),
        threads=threads,
        inputs=tuple(_info(n, t) for n, t in zip(placeholders, program.inputs, strict=True)),
        outputs=tuple(_info(f"output_{i}", t) for i, t in enumerate(outputs)),
        toolchain=toolchain(),
    )


def _info(name: str, tensor: Tensor) -> TensorInfo:
    return TensorInfo(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def compare(
    compiled: Sequence[np.ndarray], program: Program, reference: tuple[Tensor, ...]
) -> float:
    """The largest error over the largest output. Raises LoweringError above `TOLERANCE`."""
    worst = 0.0
    for ours, theirs in zip(compiled, reference, strict=True):
        expected = theirs.detach().numpy().astype(np.float64)
        scale = max(float(np.abs(expected).max(initial=0.0)), 1e-30)
        error = float(np.abs(ours - expected).max(initial=0.0)) / scale
        worst = max(worst, error if np.isfinite(error) else np.inf)
    if worst > TOLERANCE:
        raise LoweringError(
            f"the compiled network differs from PyTorch by {worst:.1e} (relative)",
            where=program.name,
            hint=f"at most {TOLERANCE:.0e} is accepted; please report the model",
        )
    return worst
