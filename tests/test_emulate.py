"""Networks of Arm code under an emulator, and what is said where a tool for it is missing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwprune import build as build_module
from hwprune.build import TOLERANCE, build, run_torch
from hwprune.capture import Program, capture, specialize
from hwprune.deploy import LIBRARY, Artifact, load
from hwprune.emulate import run_flat
from hwprune.errors import ArtifactError, LoweringError, TargetError, ToolchainError
from hwprune.llvm_target import check_llvm
from hwprune.lower import lower
from hwprune.target import Target, load_target
from hwprune.toolchain import cross_compiler, emulator, is_foreign, linker, runs_here
from tests.command_line import LINEAR, Done, linear, nothing_in, refused
from tests.small_net import small_net

SHAPE = (1, 3, 32, 32)


class Several(nn.Module):
    """Outputs of which one is a reshaped other, a constant, an operator without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, padding=1)
        self.register_buffer("ramp", torch.linspace(0, 1, 10).view(1, 10, 1, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.relu(self.conv(x) + self.ramp)
        return y, y.flatten(1), torch.sin(y)


def program(net: nn.Module | None = None) -> Program:
    torch.manual_seed(0)
    return specialize(capture(net or small_net(), (torch.randn(SHAPE),), name="net"))


def smallest() -> Program:
    """What is compiled in a moment."""
    return specialize(capture(linear(), (torch.randn(2, 12),), name="linear"))


def emulated(name: str) -> Target:
    """An Arm target; skips the test where this machine has no tools for it."""
    target = load_target(name)
    try:
        missing = not runs_here(target) and emulator(target) is None
    except ToolchainError as error:
        pytest.skip(str(error))
    if missing:
        pytest.skip("no qemu-aarch64 (Debian package qemu-user-static)")
    return target


@pytest.mark.parametrize("threads", [1, 2])
def test_the_runner_gives_what_the_artifact_gives(tmp_path: Path, threads: int) -> None:
    target, network = load_target("host"), program(Several().eval())
    lowered = lower(network, target, threads)
    library = lowered.export(tmp_path / LIBRARY)
    x = network.inputs[0].numpy()
    found = run_flat(library, lowered.flat(), target, [x])
    wanted = lowered.run(x)
    assert [a.shape for a in found] == [a.shape for a in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_damaged_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, network = load_target("host"), smallest()
    lowered = lower(network, target, 1)
    library, flat = lowered.export(tmp_path / LIBRARY), lowered.flat()
    renamed = replace(flat, calls=(("__tvm_ffi_none", flat.calls[0][1]), *flat.calls[1:]))
    with pytest.raises(LoweringError, match="no kernel __tvm_ffi_none"):
        run_flat(library, renamed, target, [network.inputs[0].numpy()])
    whole = flat.to_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("hwprune.lower.flat.FlatNetwork.to_bytes", lambda _: whole[:-64])
        with pytest.raises(LoweringError, match="is not whole"):
            run_flat(library, flat, target, [network.inputs[0].numpy()])
    monkeypatch.setattr("hwprune.lower.flat.MAGIC", b"HWPFLAT0")
    with pytest.raises(LoweringError, match="not a network"):
        run_flat(library, flat, target, [network.inputs[0].numpy()])


@pytest.mark.parametrize(("name", "threads"), [("cortex-a53", 1), ("cortex-a76", 2)])
def test_arm_code_gives_what_pytorch_gives(tmp_path: Path, name: str, threads: int) -> None:
    target, network = emulated(name), program()
    built = build(network, target, threads)
    assert built.max_rel_error is not None
    assert built.max_rel_error < TOLERANCE
    assert built.checked_by.startswith("qemu-aarch64") or not is_foreign(target)
    stored = built.artifact.save(tmp_path / "artifact")
    machine = (stored / LIBRARY).read_bytes()[18:20]
    assert machine == (183).to_bytes(2, "little")  # EM_AARCH64
    if is_foreign(target):
        with pytest.raises(ArtifactError, match="does not run on this machine"):
            built.artifact(network.inputs[0].numpy())
        with pytest.raises(ArtifactError, match="asimd"):
            load(stored)


def test_wrong_arm_code_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check compares: weights other than PyTorch's are refused."""
    target, network = emulated("cortex-a72"), smallest()
    wrong = [t + 1e-3 * t.abs().max() for t in run_torch(network)]
    monkeypatch.setattr(build_module, "run_torch", lambda _: tuple(wrong))
    with pytest.raises(LoweringError, match="differs from PyTorch"):
        build(network, target, 1)


@pytest.mark.slow
def test_efficientnet_on_arm_gives_what_pytorch_gives() -> None:
    from examples.models import build as make

    target = emulated("cortex-a72")
    torch.manual_seed(0)
    network = capture(make("efficientnet_lite0"), (torch.randn(1, 3, 64, 64),), name="lite0")
    built = build(network, target, 2)
    assert built.max_rel_error is not None
    assert built.max_rel_error < TOLERANCE


def only(monkeypatch: pytest.MonkeyPatch, *programs: str, folder: Path) -> None:
    """A PATH with these programs alone."""
    for name in programs:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"no {name}")
        os.symlink(found, folder / name)
    monkeypatch.setenv("PATH", str(folder))


def test_a_missing_cross_compiler_names_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = load_target("cortex-a72")
    if not is_foreign(target):
        pytest.skip("this machine's own compiler makes Arm code")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="Debian package g\\+\\+-aarch64-linux-gnu"):
        build(smallest(), target, 1)
    with pytest.raises(ToolchainError, match="names no compiler"):
        linker(replace(target, toolchain=""))


def test_without_an_emulator_the_check_is_said_not_to_have_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target, network = emulated("cortex-a72"), smallest()
    only(monkeypatch, cross_compiler(target), folder=tmp_path)
    assert emulator(target) is None
    built = build(network, target, 1)
    assert built.max_rel_error is None
    assert built.checked_by == ""
    assert isinstance(built.artifact, Artifact)
    with pytest.raises(ToolchainError, match="qemu-user-static"):
        run_flat(tmp_path / "none", built.lowered.flat(), target, [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mcpu": "cortex-a7x"}, "did you mean .*cortex-a7"),
        ({"mtriple": "aarch65-linux-gnu"}, "does not know the triple 'aarch65-linux-gnu'"),
        ({"mattr": ["+neon", "+dotprd"]}, "does not know the attribute '\\+dotprd'"),
    ],
)
def test_what_llvm_does_not_know_is_refused(change: dict[str, Any], said: str) -> None:
    target = load_target("cortex-a72")
    check_llvm(target)
    with pytest.raises(TargetError, match=said):
        check_llvm(replace(target, tvm_target=target.tvm_target | change))


def test_a_command_compiles_for_an_arm_board(run: Callable[..., Done], tmp_path: Path) -> None:
    emulated("cortex-a72")
    out = tmp_path / "out"
    done = run("compile", *LINEAR, "--target", "cortex-a72", "--macs", "50%", "--out", out)
    assert done.status == 0, done.err
    report = json.loads((out / "report.json").read_text())
    assert report["max_rel_error_compiled"] < TOLERANCE
    assert report["ran_on"].startswith("qemu-aarch64") or runs_here(load_target("cortex-a72"))
    assert report["pruned"]["latency_source"] == "model"  # nothing was timed
    assert json.loads((out / "manifest.json").read_text())["target"] == "cortex-a72"


def test_a_command_without_a_cross_compiler(
    run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_foreign(load_target("cortex-a72")):
        pytest.skip("this machine's own compiler makes Arm code")
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run(
        "compile", *LINEAR, "--target", "cortex-a72", "--macs", "50%", "--out", tmp_path / "o"
    )
    refused(done, "no cross-compiler", "g++-aarch64-linux-gnu")
    nothing_in(tmp_path)
