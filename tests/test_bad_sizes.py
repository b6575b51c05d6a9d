"""Networks and targets that cannot be compiled: one message that says where, before long work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import hwprune
from hwprune.build import build
from hwprune.capture import capture, specialize
from hwprune.errors import ArtifactError, LoweringError, ModelError, TargetError
from hwprune.host_cpu import CpuFacts, read_cpu
from hwprune.lower import build_kernels, fold_batch_norm, fuse, lower
from hwprune.lower.limits import MOST_ELEMENTS, check_calls
from hwprune.prepare import prepare
from hwprune.target import Target, check_runnable, load_target, required_isa
from tests.command_line import LINEAR, Done, linear, nothing_in, refused

HERE = "tests.test_bad_sizes"
IMAGE = ("--input", "1,3,32,32")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu())


class Empty(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.norm(self.first(x)).relu())
        return torch.cat([x, x[:, :0]], 1)


class Huge(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.norm(self.first(x)).relu())
        return F.interpolate(x, scale_factor=2048.0).mean((2, 3))


class HugeInVectors(Net):
    """2**28 elements of one channel: sixteen times as many where channels lie in vectors."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.norm(self.first(x)).relu())
        wide = F.interpolate(x.mean(1, keepdim=True), scale_factor=512.0)
        return F.max_pool2d(wide, 2).mean((2, 3))


def infinite() -> nn.Module:
    net = Net()
    with torch.no_grad():
        net.first.bias[3] = float("inf")
    return net


def not_a_number() -> nn.Module:
    net = Net()
    net.norm.running_mean[2] = float("nan")
    return net


def negative_variance() -> nn.Module:
    net = Net()
    net.norm.running_var[3] = -1.0
    return net


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", ["prune", "compile", "lower"])
@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("Empty", ("slice", "(1, 0, 32, 32)", "no elements", "test_bad_sizes.py", "x[:, :0]")),
        ("Huge", ("(1, 8, 65536, 65536)", "34,359,738,368", "32 bits", "interpolate(x, scale")),
        ("HugeInVectors", ("vectors of", "32 bits", "scale_factor=512.0")),
        ("infinite", ("first.bias", "infinite")),
        ("not_a_number", ("norm.running_mean", "NaN")),
        ("negative_variance", ("norm", "not finite", "running variance")),
    ],
)
def test_networks_that_cannot_be_compiled(
    run: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    model: str,
    parts: tuple[str, ...],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a kernel was made, or the network was run")

    monkeypatch.setattr("hwprune.lower.network.kernel_for", fail)
    monkeypatch.setattr("hwprune.build.run_torch", fail)
    if command == "lower":
        monkeypatch.setattr("hwprune.compiling.build", build)
    budget = (
        () if command == "lower" else ("--latency" if command == "compile" else "--macs", "50%")
    )
    refused(run(command, f"{HERE}:{model}", *IMAGE, *budget, "--out", tmp_path / "out"), *parts)
    nothing_in(tmp_path)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("shape", ["0,3,32,32", "1,3,0,32"])
@pytest.mark.parametrize("command", ["prune", "compile", "lower"])
def test_an_input_without_elements(
    run: Callable[..., Done], tmp_path: Path, command: str, shape: str
) -> None:
    budget = () if command == "lower" else ("--macs", "50%")
    words = (f"{HERE}:Net", "--input", shape, *budget, "--out", tmp_path / "out")
    done = run(command, *words)
    assert done.status == 2
    assert f"'{shape}' is not a shape" in done.err
    nothing_in(tmp_path)


def test_an_input_without_elements_through_the_library() -> None:
    with pytest.raises(ModelError, match=r"inputs\[0\]: the input of shape \(0, 12\) has no elem"):
        hwprune.compile(linear(), (torch.zeros(0, 12),))
    exported = torch.export.export(linear(), (torch.zeros(2, 12),))
    with pytest.raises(ModelError, match="no elements"):
        hwprune.prune(exported, (torch.zeros(2, 0),), macs="50%")


def test_a_border_counts() -> None:
    """The input alone can be indexed; the copy of it that has a border cannot."""
    program = specialize(capture(nn.Conv2d(3, 16, 3, padding=1), (torch.zeros(1, 3, 32, 32),)))
    folded = fold_batch_norm(program)
    (call,) = (c for c in fuse(folded) if c.workload.op == "conv2d")
    side = 11_584  # 16 * side ** 2 < 2 ** 31 <= 16 * (side + 2) ** 2
    source = replace(call.workload.inputs[0], shape=(1, 16, side, side), layout="packed")
    output = replace(call.workload.output, shape=(1, 16, 4, 4))
    large = replace(call, workload=replace(call.workload, inputs=(source,), output=output))
    assert 16 * side**2 <= MOST_ELEMENTS
    with pytest.raises(LoweringError, match="32 bits"):
        check_calls([large], folded, 16)
    bare = (("dilation", (1, 1)), ("padding", (0, 0, 0, 0)), ("stride", (1, 1)))
    check_calls([replace(large, workload=replace(large.workload, attrs=bare))], folded, 16)


def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    """Install the target "foreign": x86-64-v3 with these texts replaced."""
    text = (Path(__file__).parents[1] / "targets/x86-64-v3/target.toml").read_text()
    for old, new in {"x86-64-v3": "foreign", **changes}.items():
        assert old in text
        text = text.replace(old, new, 1 if old != "x86-64-v3" else -1)
    text = text.replace('mcpu = "foreign"', 'mcpu = "x86-64-v3"')
    (tmp_path / "targets/foreign").mkdir(parents=True)
    (tmp_path / "targets/foreign/target.toml").write_text(text)
    monkeypatch.setenv("HWPRUNE_TARGETS", str(tmp_path / "targets"))


WORDS = {
    "lower": ("--out", "out"),
    "compile": ("--macs", "50%", "--out", "out"),
    "prune": ("--latency", "50%", "--out", "out"),
    "profile": (),
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", WORDS)
@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({'"abm"': '"abm", "warp9"'}, ("'foreign'", "warp9", "choose the target host")),
        ({"x86_64-linux-gnu": "aarch64-linux-gnu"}, ("'foreign'", "is for aarch64")),
    ],
)
def test_a_target_that_this_cpu_cannot_run(
    run: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    changes: dict[str, str],
    parts: tuple[str, ...],
) -> None:
    foreign(tmp_path, monkeypatch, **changes)
    words = [tmp_path / "out" if word == "out" else word for word in WORDS[command]]
    refused(run(command, *LINEAR, "--target", "foreign", *words), *parts)
    assert not (tmp_path / "out").exists()


def old_cpu() -> CpuFacts:
    """This machine without its vector units."""
    cpu = read_cpu()
    return replace(cpu, flags=frozenset(f for f in cpu.flags if not f.startswith("avx")))


def test_what_the_code_may_use_counts_and_not_what_the_target_says() -> None:
    target = replace(load_target("x86-64-v4"), isa=("fma",))
    assert {"avx512f", "avx2", "fma"} <= set(required_isa(target))
    with pytest.raises(TargetError, match=r"lacks: .*avx512f"):
        check_runnable(target, old_cpu())
    without = replace(target, tvm_target={**target.tvm_target, "mattr": ["-avx512f"]})
    assert not any(f.startswith("avx512") for f in required_isa(without))


def warped() -> Target:
    return replace(load_target("host"), name="warped", isa=(*load_target("host").isa, "warp9"))


def test_code_for_another_cpu_is_compiled_but_never_run() -> None:
    program = specialize(capture(linear(), (torch.zeros(2, 12),)))
    lowered, x = lower(program, warped(), 1), np.zeros((2, 12), np.float32)
    for use in (lowered.run, lambda x: lowered.latencies_us([x]), lambda x: lowered.profile([x])):
        with pytest.raises(TargetError, match="warp9"):
            use(x)
    with pytest.raises(TargetError, match="warp9"):
        build_kernels([call.workload for call in lowered.calls], warped(), 1)
    with pytest.raises(ArtifactError, match="warp9"):
        build(program, warped(), 1)


def test_an_artifact_is_refused_by_a_cpu_that_lacks_what_it_needs(
    run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "avx2" not in read_cpu().flags:
        pytest.skip("x86-64-v3 cannot be compiled here")
    artifact = hwprune.compile(linear(), (torch.zeros(2, 12),), target="x86-64-v3")
    artifact.save(tmp_path / "out")
    assert set(artifact.manifest.isa) == set(required_isa(load_target("x86-64-v3")))
    monkeypatch.setattr("hwprune.deploy.read_cpu", old_cpu)

    def fail(*_: object) -> None:
        raise AssertionError("the code was loaded")

    monkeypatch.setattr("hwprune.deploy.load_tvm", fail)
    refused(run("run", tmp_path / "out"), "lacks: avx, avx2", "'x86-64-v3'")
    with pytest.raises(ArtifactError, match="lacks: avx, avx2"):
        hwprune.load(tmp_path / "out")


def test_ordinary_networks_are_within_the_limits() -> None:
    assert prepare(capture(Net(), (torch.zeros(1, 3, 32, 32),)), load_target("host"), 1).sites
