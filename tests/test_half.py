"""Networks in float16 on cores that have it: what they compute, how exactly, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwprune.build import HALF_TOLERANCE, TOLERANCE, build
from hwprune.capture import Program, capture, specialize
from hwprune.deploy import LIBRARY
from hwprune.dtype import in_dtype
from hwprune.emulate import run_flat
from hwprune.errors import LoweringError, TargetError
from hwprune.estimate import estimate_network
from hwprune.lower import fold_batch_norm
from hwprune.lower.for_target import fuse_for
from hwprune.lower.half import check_range
from hwprune.obtain import open_table
from hwprune.target import Target, list_targets, load_target
from tests.command_line import LINEAR, Done, refused
from tests.test_emulate import emulated

HAVE_IT = {"cortex-a55", "cortex-a76", "neoverse-n1"}
CHANNELS, SIZE = 20, 6  # channels: a whole vector of eight, and rests


class Mixed(nn.Module):
    """Rules in float16, an operator that stays float32, a value that is read by both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 12, 3, padding=1)
        self.down = nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12)
        self.register_buffer("ramp", torch.linspace(0, 1, 12).view(1, 12, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = torch.relu(self.conv(x))
        pooled = torch.max_pool2d(x, 2) + torch.relu(x)[:, :, ::2, ::2]
        z = nn.functional.silu(self.down(y) + self.ramp)
        return y, pooled, torch.sin(z)


def half(name: str) -> Target:
    return in_dtype(emulated(name), "float16")


def made(net: nn.Module, *shape: int) -> Program:
    generator = torch.Generator().manual_seed(1)
    return specialize(capture(net.eval(), (torch.randn(shape, generator=generator),), name="net"))


@pytest.fixture(scope="module")
def run_mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, list[np.ndarray], float]:
    torch.manual_seed(0)
    program, target = made(Mixed(), 1, CHANNELS, SIZE, SIZE), half("cortex-a76")
    built = build(program, target, 2)
    library = built.lowered.export(tmp_path_factory.mktemp("mixed") / LIBRARY)
    found = run_flat(library, built.lowered.flat(), target, [program.inputs[0].numpy()])
    assert built.max_rel_error is not None
    return program, found, built.max_rel_error


def test_outputs_are_near_those_in_float32(run_mixed) -> None:
    program, found, error = run_mixed
    assert 1e-5 < error < 4e-3  # not float32, and a few units of the eleventh bit
    assert all(a.dtype == np.float32 for a in found)
    assert [a.shape for a in found] == [tuple(t.shape) for t in program.module(*program.inputs)]


def test_a_convolution_equals_fused_steps_in_float16(run_mixed) -> None:
    """Sums in float16, one rounding a multiply-add: eight channels at every tap, then the next."""
    program, found, _ = run_mixed
    weight, bias = (
        t.detach().numpy().astype(np.float16).astype(np.float64)
        for t in (program.module.conv.weight, program.module.conv.bias)
    )
    x = program.inputs[0].numpy().astype(np.float16).astype(np.float64)[0]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    total = np.zeros((12, SIZE, SIZE), np.float16)
    for block in range(0, CHANNELS, 8):
        for tap in range(9):
            dy, dx = divmod(tap, 3)
            for c in range(block, min(block + 8, CHANNELS)):
                pixels = padded[c, dy : dy + SIZE, dx : dx + SIZE]
                product = weight[:, c, dy, dx, None, None] * pixels
                total = (total.astype(np.float64) + product).astype(np.float16)
    wanted = np.maximum((total + bias[:, None, None]).astype(np.float16), 0)
    np.testing.assert_array_equal(found[0][0], wanted.astype(np.float32))


def test_moves_and_maxima_equal_pytorch_in_float16(run_mixed) -> None:
    program, found, _ = run_mixed
    x = program.inputs[0].half()
    wanted = torch.max_pool2d(x, 2) + torch.relu(x)[:, :, ::2, ::2]
    np.testing.assert_array_equal(found[1], wanted.float().numpy())


class OneSided(nn.Module):
    """Clamps of which float16 cannot hold the bound that is left out."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.clamp(min=-0.5), x.clamp(max=0.5)


def test_a_clamp_with_one_bound_is_compiled(tmp_path: Path) -> None:
    program, target = made(OneSided(), 1, CHANNELS, SIZE, SIZE), half("cortex-a76")
    built = build(program, target, 1)
    library = built.lowered.export(tmp_path / LIBRARY)
    x = program.inputs[0].numpy()
    low, high = run_flat(library, built.lowered.flat(), target, [x])
    near = x.astype(np.float16).astype(np.float32)
    assert np.array_equal(low, near.clip(-0.5))
    assert np.array_equal(high, near.clip(None, 0.5))


def test_values_are_half_as_large() -> None:
    folded = fold_batch_norm(made(Mixed(), 1, CHANNELS, SIZE, SIZE))
    fused = fuse_for(folded, in_dtype(load_target("cortex-a76"), "float16"))
    kinds = {call.workload.output.dtype for call in fused.calls if call.workload.op == "conv2d"}
    assert kinds == {"float16"}
    sine = next(call.workload for call in fused.calls if call.workload.op == "aten")
    assert {t.dtype for t in (*sine.inputs, sine.output)} == {"float32"}
    assert all(fused.specs[name].dtype == "float32" for name in fused.outputs)
    plain = fuse_for(folded, load_target("cortex-a76"))
    assert {t.dtype for call in plain.calls for t in call.workload.params} == {"float32"}


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        nn.init.constant_(self.first.weight, 300.0)
        nn.init.constant_(self.second.weight, 300.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(x)
        return torch.clamp(x, max=10.0)


def test_overflow_names_the_layer() -> None:
    target = in_dtype(load_target("cortex-a76"), "float16")
    program = specialize(capture(Large().eval(), (torch.ones(1, 8),), name="large"))
    with pytest.raises(LoweringError, match=r"a value of linear_1 is 5.76e\+06.*65504") as caught:
        build(program, target, 1)
    assert "test_half.py" in caught.value.where
    assert "self.second(x)" in caught.value.where
    weights = nn.Linear(8, 8)
    nn.init.constant_(weights.weight, 1e5)
    with pytest.raises(LoweringError, match="the parameter weight is 1e"):
        build(made(weights, 1, 8), target, 1)
    reach = check_range(fold_batch_norm(made(nn.Linear(8, 8), 1, 8)))
    assert 0 < reach.value < 100


def test_what_is_wrong_in_float16_names_the_largest_value(monkeypatch) -> None:
    monkeypatch.setattr("hwprune.build.HALF_TOLERANCE", 1e-9)
    with pytest.raises(
        LoweringError, match=r"differs from PyTorch by .*the largest value is .* at"
    ):
        build(made(nn.Linear(8, 8), 1, 8), half("cortex-a55"), 1)
    assert TOLERANCE < HALF_TOLERANCE


def test_only_cores_that_have_it() -> None:
    others = [load_target(name) for name in list_targets() if name != "host"]
    elsewhere = [target for target in others if target.gpu is None]
    having = [target for target in elsewhere if target.name in HAVE_IT]
    assert {target.name for target in having} == HAVE_IT
    assert [in_dtype(t, "float16").lanes for t in having] == [2 * t.lanes for t in having]
    for target in elsewhere:
        if target.name not in HAVE_IT:
            with pytest.raises(TargetError, match=f"{target.name}' has no arithmetic in float16"):
                in_dtype(target, "float16")
    with pytest.raises(TargetError, match=r"unknown type 'int4'.*float32, float16"):
        in_dtype(load_target("cortex-a76"), "int4")


@pytest.mark.usefixtures("no_work")
def test_refused_on_the_command_line(run: Callable[..., Done], tmp_path: Path) -> None:
    words = (*LINEAR, "--out", tmp_path / "out", "--dtype", "float16", "--target")
    for command in (("compile", "--macs", "50%"), ("lower",)):
        refused(run(*command, *words, "cortex-a72"), "'cortex-a72' has no arithmetic in float16")
    refused(run("compile", *words, "cortex-m4"), "'cortex-m4' has no kernels in float16")
    board = ("--macs", "50%", "--rpc", "localhost:9090")
    refused(run("compile", *words, "cortex-a76", *board), "not measured on boards yet")
    profile = ("profile", *LINEAR, "--dtype", "half")
    refused(run(*profile), "dtype: unknown type 'half'")
    search = ("compile", "--from", tmp_path / "search.json", "--point", 1)
    refused(run(*search, *words[len(LINEAR) :], "cortex-a76"), "dtype exclude each other")
    assert not (tmp_path / "out").exists()


def test_a_network_is_pruned_and_compiled_in_float16(
    run: Callable[..., Done], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "cache"))
    target = half("cortex-a76")
    done = run(
        "compile", "tests.command_line:wide", "--input", "2,64", "--target", target.name,
        "--macs", "50%", "--dtype", "float16", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert report["dtype"] == "float16"
    assert report["pruned"]["latency_source"] == "model"
    assert 1e-5 < report["max_rel_error_compiled"] < HALF_TOLERANCE
    assert report["pruned"]["weight_bytes"] == 2 * report["pruned"]["params"]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "asimdhp" in manifest["isa"]
    assert {t["dtype"] for t in (*manifest["inputs"], *manifest["outputs"])} == {"float32"}
    assert "computed in float16" in (tmp_path / "out/report.html").read_text()


def test_predictions_follow_lanes_and_bytes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "cache"))
    net = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 128, 1))
    program = made(net, 1, 64, 28, 28)
    found = {}
    for dtype in ("float32", "float16"):
        target = in_dtype(load_target("cortex-a76"), dtype)
        with open_table(target) as table:
            span = estimate_network(program, target, 1, table)
            assert {row.source for row in table.rows()} == {"model"}
        found[dtype] = [k for k in span.kernels if k.parameter]
    for wide, narrow in zip(found["float32"][1:], found["float16"][1:], strict=True):
        assert (
            0.4 < narrow.us / wide.us < 0.65
        )  # twice the lanes, half of the bytes, the same launch


def test_targets_are_not_mixed() -> None:
    target = load_target("cortex-a76")
    assert replace(in_dtype(target, "float16"), dtype="float32") == target
