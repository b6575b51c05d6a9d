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
from hwprune.cuda_runtime import digest, gpu_architecture
from hwprune.deploy import CUBIN, CUBIN_SOURCE, LIBRARY, Artifact, Manifest, TensorInfo
from hwprune.emulate import run_flat
from hwprune.errors import LoweringError
from hwprune.lower import Lowered, lower
from hwprune.lower.half import check_range
from hwprune.lower.spec import numpy_type
from hwprune.network_cubin import network_cubin
from hwprune.target import BFLOAT16, FLOAT16, FLOAT32, TF32, Target, required_isa
from hwprune.toolchain import emulator, linker, runs_here

CODE_BYTES = 4 << 20
TOLERANCE = 1e-4  # relative to the largest output
HALF_TOLERANCE = 3e-2  # in float16: sums of thousands of products, each rounded to 11 bits
# Of a GPU, whose sums are float32: 8 and 16 units in the last place, for rounding errors add up.
# Factors of TF32 have float16's mantissa.
GPU_TOLERANCES = {FLOAT16: 8 * 2.0**-10, TF32: 8 * 2.0**-10, BFLOAT16: 16 * 2.0**-8}


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


def build(program: Program, target: Target, threads: int, images: Tensor | None = None) -> Build:
    """Lower, compile, load and check a program; a foreign target's under an emulator, if any.

    In float16 the range of its values is looked at on `images` (N, ...) too.

    Raises LoweringError if the compiled outputs differ from PyTorch's in float32 by more than
    `tolerance`, a kernel does not compile, or a tensor is empty or too large; ArtifactError if the
    code does not run on this CPU or there is no room for it; ToolchainError if no C++ compiler is
    there to link the library.
    """
    linker(target)
    check_room(tempfile.gettempdir(), _temporary_bytes(program))
    static = specialize(program)
    lowered = lower(static, target, threads, images)
    reference = run_torch(static)
    artifact = package(lowered, _manifest(static, reference, target, threads), static)
    inputs = [_array(t, outside(target)) for t in static.inputs]
    found, checked_by = run_artifact(artifact, lowered, inputs)
    if found is None:
        return Build(artifact, lowered, None)
    return Build(artifact, lowered, compare(found, static, reference, target), checked_by)


def package(lowered: Lowered, manifest: Manifest, program: Program | None = None) -> Artifact:
    """A network's library and manifest in a temporary directory, loaded where it runs here.

    For a GPU the `program` names the layer of a kernel that does not compile.
    """
    target = lowered.target
    directory = Path(tempfile.gettempdir()) / f"hwprune-{uuid.uuid4().hex}"
    try:
        directory.mkdir(mode=0o700)
        lowered.export(directory / LIBRARY)
        if target.gpu is not None:
            assert program is not None
            _write_cubin(lowered, program, directory)
        artifact = Artifact(directory, manifest, loaded=_runs_here(target))
        weakref.finalize(artifact, shutil.rmtree, directory, ignore_errors=True)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return artifact


def run_artifact(
    artifact: Artifact, lowered: Lowered, inputs: Sequence[np.ndarray]
) -> tuple[list[np.ndarray] | None, str]:
    """Its outputs and the emulator that ran it ("" for this machine); None where nothing can."""
    if artifact.loaded:
        result = artifact(*inputs)
        return (list(result) if isinstance(result, tuple) else [result]), ""
    runner = emulator(lowered.target) if lowered.target.gpu is None else None
    if runner is None:
        return None, ""
    library = artifact.directory / LIBRARY
    return run_flat(library, lowered.flat(), lowered.target, inputs), runner.name


def has_gpu(target: Target) -> bool:
    """Whether the target is a GPU whose architecture this machine's GPU has."""
    if target.gpu is None or target.runner != "local":
        return False
    return gpu_architecture() == target.gpu.architecture


def _runs_here(target: Target) -> bool:
    """Whether this machine runs a target's network."""
    if target.gpu is not None:
        return has_gpu(target)
    return target.runner == "local" or runs_here(target)


def _write_cubin(lowered: Lowered, program: Program, directory: Path) -> None:
    """The machine code of a GPU's kernels, beside the library."""
    source, cubin = network_cubin(lowered, program)
    (directory / CUBIN).write_bytes(cubin.code)
    (directory / CUBIN_SOURCE).write_text(digest(source) + "\n")


def outside(target: Target) -> str:
    """The type of floating-point inputs and outputs: on a GPU that of its values."""
    return target.storage if target.gpu is not None else FLOAT32


def _array(tensor: Tensor, dtype: str) -> np.ndarray:
    array: np.ndarray = tensor.detach().numpy()
    return array.astype(numpy_type(dtype)) if array.dtype == np.float32 else array


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
    floats = outside(target)
    return Manifest(
        model=program.name,
        target=target.name,
        isa=required_isa(target),
        threads=threads,
        inputs=tuple(
            _info(n, t, floats) for n, t in zip(placeholders, program.inputs, strict=True)
        ),
        outputs=tuple(_info(f"output_{i}", t, floats) for i, t in enumerate(outputs)),
        toolchain=toolchain(),
        gpu=target.gpu.architecture if target.gpu is not None else "",
    )


def _info(name: str, tensor: Tensor, floats: str) -> TensorInfo:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorInfo(name, tuple(tensor.shape), floats if dtype == "float32" else dtype)


def tolerance(target: Target) -> float:
    """The largest error against float32 that is accepted, relative to the largest output."""
    if target.dtype == FLOAT32:
        return TOLERANCE
    return HALF_TOLERANCE if target.gpu is None else GPU_TOLERANCES[target.dtype]


def compare(
    compiled: Sequence[np.ndarray],
    program: Program,
    reference: tuple[Tensor, ...],
    target: Target | None = None,
) -> float:
    """The largest error over the largest output. Raises LoweringError above the tolerance.

    `target`: whose type it was computed in, float32 if None. In float16 the message names the layer
    that comes nearest to the end of its range.
    """
    worst = 0.0
    for ours, theirs in zip(compiled, reference, strict=True):
        expected = theirs.detach().numpy().astype(np.float64)
        scale = max(float(np.abs(expected).max(initial=0.0)), 1e-30)
        error = float(np.abs(ours - expected).max(initial=0.0)) / scale
        worst = max(worst, error if np.isfinite(error) else np.inf)
    limit = TOLERANCE if target is None else tolerance(target)
    if worst > limit:
        raise LoweringError(
            f"the compiled network differs from PyTorch by {worst:.1e} (relative)",
            where=program.name,
            hint=f"at most {limit:.0e} is accepted; {_advice(program, target)}",
        )
    return worst


def _advice(program: Program, target: Target | None) -> str:
    if target is None or target.dtype != FLOAT16:
        return "please report the model"
    reach = check_range(program)
    return f"the largest value is {reach.value:.3g} at {reach.where}; compile it in float32"
