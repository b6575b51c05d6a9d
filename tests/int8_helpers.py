"""Integer graphs compiled for CPUs and compared with the reference, bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hwprune.emulate import run_flat
from hwprune.errors import TargetError
from hwprune.lower import Lowered
from hwprune.lower.int8.layout import stored, unstored
from hwprune.lower.int8.machine import machine_of
from hwprune.lower.int8.network import lower_int8
from hwprune.quantize.graph import FLOAT32, IntegerGraph
from hwprune.quantize.reference import run
from hwprune.target import Target, check_code, load_target
from tests.test_mcu_kernels import Bench


def x86_targets() -> dict[str, Target]:
    """Targets by name whose code this machine runs; narrow vectors with dot products too."""
    host = load_target("host")
    found = {"host": host}
    if "avx512_vnni" in host.isa:
        found["vnni-256"] = replace(host, name="vnni-256", vector_bits=256, vector_registers=16)
    for name in ("x86-64-v4", "x86-64-v3"):
        target = load_target(name)
        try:
            check_code(target)
        except TargetError:
            continue
        found[name] = target
    return found


def wide(bench: Bench) -> None:
    """Convolutions of several vectors of channels, in odd numbers, and their groups."""
    rng = bench.rng
    for _ in range(6):
        kernel = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
        pads = tuple(int(rng.integers(0, k)) for k in (*kernel, *kernel))
        size = (int(rng.integers(3, 9)), int(rng.integers(3, 9)), int(rng.integers(14, 70)))
        stride = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
        bench.conv(size, int(rng.integers(14, 90)), kernel, pads=pads, stride=stride)
    bench.conv((9, 9, 37), 33, (3, 3), pads=(2, 2, 2, 2), dilation=(2, 2))
    bench.conv((6, 5, 24), 36, (3, 3), pads=(1, 1, 1, 1), groups=4)
    bench.conv((4, 7, 48), 96, (1, 1), groups=3, stride=(1, 2))
    bench.conv((5, 4, 37), 37, (3, 3), pads=(1, 1, 1, 1), groups=37)
    bench.conv((6, 6, 20), 40, (3, 3), groups=20)  # two outputs a channel
    bench.conv((1, 1, 600), 70, (1, 1), real=1e-4, clamp=(-128, 5))


def random_inputs(graph: IntegerGraph, seed: int) -> list[np.ndarray]:
    """Integers of the whole range, and floats, as the graph takes them."""
    rng = np.random.default_rng(seed)
    tensors = [graph.by_name[name] for name in graph.inputs]
    return [
        3 * rng.standard_normal(t.shape).astype(np.float32)
        if t.dtype == FLOAT32
        else rng.integers(-128, 128, t.shape).astype(np.int8)
        for t in tensors
    ]


def differing(graph: IntegerGraph, lowered: Lowered, seed: int = 0) -> list[str]:
    """The outputs, by the names of their tensors, that are not the reference's."""
    machine, inputs = machine_of(lowered.target), random_inputs(graph, seed)
    given = [x if x.dtype == np.float32 else stored(x, machine) for x in inputs]
    different = []
    for name, wanted, found in zip(
        graph.outputs, run(graph, inputs), _run(lowered, given), strict=True
    ):
        if wanted.dtype == np.int8:
            found = unstored(found, graph.by_name[name], machine)
        assert wanted.size == 1 or len(np.unique(wanted)) > 1
        if wanted.shape != found.shape or not np.array_equal(wanted, found):
            different.append(name)
    return different


def _run(lowered: Lowered, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    if lowered.target.runner == "local":
        return lowered.run(*inputs)
    with tempfile.TemporaryDirectory() as folder:
        library = lowered.export(Path(folder) / "model.so")
        return run_flat(library, lowered.flat(), lowered.target, inputs)


def lowered_bench(parts: Sequence, target: Target, threads: int = 1) -> tuple[Bench, Lowered]:
    """Operators side by side, compiled."""
    bench = Bench(seed=5)
    for part in parts:
        part(bench)
    return bench, integers_alone(bench.graph(), target, threads)


def integers_alone(graph: IntegerGraph, target: Target, threads: int = 1) -> Lowered:
    """A graph compiled as it is: the ends would be most of the kernels."""
    return lower_int8(graph, target, threads, float_ends=False)
