"""Build: a `Quantized` network + `Target` -> an `Artifact` in int8, checked bit for bit.

What the compiled network computes must be what `quantize/reference.py` computes, on every input
that it is checked with. It takes and gives float32 as torch has it: inputs are quantized and
outputs dequantized within.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hwprune.atomic import check_room
from hwprune.build import CODE_BYTES, package, run_artifact, toolchain
from hwprune.capture import Program
from hwprune.deploy import Artifact, Manifest, TensorInfo
from hwprune.errors import HwpruneError, LoweringError
from hwprune.lower import Lowered
from hwprune.lower.int8.network import lower_int8
from hwprune.quantize.graph import FLOAT32, IntegerGraph
from hwprune.quantize.quantizer import Quantized
from hwprune.target import Target, required_isa
from hwprune.toolchain import linker

CHECKED = 4  # inputs that a network is checked with


@dataclass(frozen=True)
class Int8Build:
    """A compiled network of integers, the graph that it was made from, how it was lowered.

    `checked` inputs gave the reference's outputs bit for bit, under the emulator that `checked_by`
    names ("" for this machine); 0 where nothing here runs its code.
    """

    artifact: Artifact
    lowered: Lowered
    quantized: Quantized
    checked: int
    checked_by: str = ""


def check_single_input(program: Program) -> None:
    """Raise HwpruneError unless the network is to take one input at a time."""
    batch = len(program.inputs[0]) if program.inputs[0].ndim else 0
    if batch != 1:
        raise HwpruneError(
            f"the example has a batch of {batch}: networks in int8 take one input at a time",
            where=program.name,
            hint="give an example with a batch of 1",
        )


def build_int8(quantized: Quantized, target: Target, threads: int, inputs: Tensor) -> Int8Build:
    """Lower, compile, load and check a network; a foreign target's under an emulator, if any.

    Args:
        inputs: (N, …) float32, of which the first `CHECKED` are run.

    Raises LoweringError for operators without a kernel and where an output is not the reference's,
    ToolchainError if there is no C++ compiler, ArtifactError if there is no room.
    """
    linker(target)
    graph = quantized.graph
    check_room(tempfile.gettempdir(), 2 * graph.summary()["constant_bytes"] + CODE_BYTES)
    lowered = lower_int8(graph, target, threads)
    artifact = package(lowered, _manifest(graph, target, threads))
    runner, count = "", 0
    for image in inputs[:CHECKED].split(1):
        found, runner = run_artifact(artifact, lowered, [image.numpy()])
        if found is None:
            break
        _check(found, quantized(image), graph)
        count += 1
        if runner:  # an emulator takes its time
            break
    return Int8Build(artifact, lowered, quantized, count, runner)


def _check(found: list[np.ndarray], wanted: tuple[np.ndarray, ...], graph: IntegerGraph) -> None:
    """Raise LoweringError unless every output is the reference's."""
    for name, ours, theirs in zip(graph.outputs, found, wanted, strict=True):
        if not np.array_equal(ours, theirs):
            different = int((ours != theirs).sum())
            raise LoweringError(
                f"{different} of {theirs.size} values of output {name!r} differ from the integer "
                "reference",
                where=graph.name,
                hint="a defect of hwprune or of TVM: please report the model",
            )


def _manifest(graph: IntegerGraph, target: Target, threads: int) -> Manifest:
    return Manifest(
        model=graph.name,
        target=target.name,
        isa=required_isa(target),
        threads=threads,
        inputs=tuple(_info(graph, name, name) for name in graph.inputs),
        outputs=tuple(_info(graph, name, f"output_{i}") for i, name in enumerate(graph.outputs)),
        toolchain=toolchain(),
    )


def _info(graph: IntegerGraph, tensor: str, name: str) -> TensorInfo:
    """An input or output in float32, images as (N, C, H, W)."""
    shape = graph.by_name[tensor].shape
    if len(shape) == 4:
        shape = (shape[0], shape[3], shape[1], shape[2])
    return TensorInfo(name, shape, FLOAT32)
