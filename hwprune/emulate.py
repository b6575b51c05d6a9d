"""A compiled network run without TVM's runtime: here, or as another machine's program.

In: a library, a `FlatNetwork` and input arrays. Out: output arrays. `flat_runner.c` is compiled
for the target, loads the very library of the artifact and calls its kernels; an emulator stands
in for the machine.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hwprune.errors import LoweringError, ToolchainError
from hwprune.lower.flat import FlatNetwork
from hwprune.target import Target
from hwprune.toolchain import COMPILERS, cross_compiler, emulator, is_foreign

RUNNER = Path(__file__).with_name("flat_runner.c")
TIMEOUT_S = 600.0  # an emulator takes some 50 times as long as the machine would
FLAGS = ("-x", "c", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread", "-rdynamic")


def run_flat(
    library: Path, network: FlatNetwork, target: Target, inputs: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The network's outputs on these inputs, by the target's own code.

    Raises ToolchainError where a compiler or an emulator is missing or fails, LoweringError where
    the network does.
    """
    prefix: tuple[str, ...] = ()
    if is_foreign(target):
        found = emulator(target)
        if found is None:
            raise ToolchainError(
                f"no emulator runs code for target {target.name!r} here",
                where="PATH",
                hint="install the Debian package qemu-user-static",
            )
        prefix = found.command
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
        place = Path(folder)
        runner = build_runner(target, place / "runner")
        (place / "network").write_bytes(network.to_bytes())
        given = [network.tensors[i] for i in network.inputs]
        parts = [
            np.ascontiguousarray(x, t.dtype).tobytes() for x, t in zip(inputs, given, strict=True)
        ]
        (place / "inputs").write_bytes(b"".join(parts))
        files = (library.resolve(), place / "network", place / "inputs", place / "outputs")
        _run([*prefix, str(runner), *map(str, files)])
        return _arrays(network, (place / "outputs").read_bytes())


def build_runner(target: Target, path: Path) -> Path:
    """Compile the runner for a target. Raises ToolchainError where that fails."""
    compiler = (
        cross_compiler(target)
        if is_foreign(target)
        else next((name for name in COMPILERS if shutil.which(name)), COMPILERS[0])
    )
    command = [compiler, *FLAGS, str(RUNNER), "-o", str(path), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolchainError(
            f"cannot compile {RUNNER.name}: {_first_line(done.stderr)}", where=compiler
        )
    return path


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise LoweringError(
            f"the compiled network does not end within {TIMEOUT_S:.0f} s", where=command[0]
        ) from error
    if done.returncode:
        raise LoweringError(
            f"the compiled network does not run (status {done.returncode}): "
            f"{_first_line(done.stderr)}",
            where=command[0],
        )


def _arrays(network: FlatNetwork, data: bytes) -> list[np.ndarray]:
    arrays, start = [], 0
    for tensor in (network.tensors[i] for i in network.outputs):
        part = data[start : start + tensor.size_bytes]
        arrays.append(np.frombuffer(part, tensor.dtype).reshape(tensor.shape))
        start += tensor.size_bytes
    return arrays


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "no message")
