"""`compile --dtype int8` on CPUs: artifacts bit for bit the reference, reports, mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import hwprune
from examples import tiny
from hwprune import int8_build
from hwprune.build import tolerance
from hwprune.dtype import in_dtype
from hwprune.errors import BudgetError, HwpruneError, LoweringError, TargetError
from hwprune.int8_compile import Int8Result, compile_int8
from hwprune.target import load_target
from tests.command_line import Done

SHAPE = tiny.SHAPES["resnet8"]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Int8Result, Path]:
    out = tmp_path_factory.mktemp("int8") / "out"
    images = torch.randn(8, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
    result = compile_int8(
        tiny.resnet8(),
        (images[:1],),
        out=out,
        macs="50%",
        calibrate=images,
        name="resnet8",
        importance="l2",
        recover="none",
    )
    return result, out


def test_the_artifact_is_the_reference_bit_for_bit(pruned: tuple[Int8Result, Path]) -> None:
    result, out = pruned
    image = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
    artifact = hwprune.load(out)
    assert np.array_equal(artifact(image.numpy()), result.built.quantized(image)[0])
    info = artifact.manifest
    assert [(t.name, t.shape, t.dtype) for t in info.inputs] == [("x", SHAPE, "float32")]
    assert [(t.shape, t.dtype) for t in info.outputs] == [((1, 10), "float32")]


def test_the_report_has_three_networks_timed_in_turn(pruned: tuple[Int8Result, Path]) -> None:
    report = json.loads((pruned[1] / "report.json").read_text())
    assert (report["dtype"], report["bit_exact"], report["ran_on"]) == ("int8", 4, "")
    found = report["int8_latency"]
    assert list(found["us"]) == ["dense_float32", "dense_int8", "pruned_int8"]
    assert found["source"] == "device"
    assert found["ratio"]["dense_float32"] == 1.0
    assert all(us > 0 for us in found["us"].values())
    assert report["pruned"]["latency_us"] == found["us"]["pruned_int8"]
    assert report["pruned"]["macs"] <= 0.5 * report["dense"]["macs"]
    bytes_ = report["pruned"]["weight_bytes"]
    assert bytes_ == pruned[0].built.quantized.graph.summary()["constant_bytes"]
    assert bytes_ < report["pruned"]["params"] * 2
    assert report["agreement"]["images"] == 2
    assert 0.9 < report["agreement"]["cosine"] <= 1
    assert len(report["values"]) > 8
    assert min(row["within_one_step"] for row in report["values"]) > 0.9
    assert all(row["snr_db"] is None or row["snr_db"] > 5 for row in report["values"])
    assert "4 inputs bit for bit" in (pruned[1] / "report.html").read_text()


def test_the_files_of_a_pruned_network_are_there(pruned: tuple[Int8Result, Path]) -> None:
    names = {file.name for file in pruned[1].iterdir()}
    assert {"model.so", "manifest.json", "model.pt2", "plan.json", "report.html"} <= names


def test_for_another_machine_under_an_emulator(run: Callable[..., Done], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(
        "compile", "examples.tiny:ds_cnn", "--input", "1,1,49,10", "--dtype", "int8",
        "--target", "cortex-a76", "--out", out,
    )  # fmt: skip
    assert done.status == 0, done.err
    said = " ".join(done.out.split())
    assert "1 inputs gave the integer reference's outputs bit for bit under qemu" in said
    assert "latency not measured: cortex-a76 is not this machine" in said
    report = json.loads((out / "report.json").read_text())
    assert "int8_latency" not in report
    assert report["calibration"] == "32 random normal inputs: none were given"
    assert report["unit"].startswith("sdot")


def test_a_wrong_output_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = int8_build.run_artifact

    def altered(*args: object) -> object:
        outputs, runner = found(*args)  # type: ignore[arg-type]
        outputs[0][0, 0] += 1e-3
        return outputs, runner

    monkeypatch.setattr(int8_build, "run_artifact", altered)
    with pytest.raises(LoweringError, match=r"1 of 8 values of output .* integer reference"):
        compile_int8(
            torch.nn.Linear(6, 8), (torch.randn(1, 6),), out=tmp_path / "out", name="layer"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "kind", "text"),
    [
        (
            {"latency": "50%", "target": "cortex-a76"},
            BudgetError,
            "int8 kernels are timed, and cortex-a76 is not this machine",
        ),
        ({"latency": "50%", "plan": "plan.json"}, BudgetError, "a plan and a budget exclude"),
        ({"latency": "soon"}, BudgetError, "soon"),
        ({"boards": object()}, HwpruneError, "not measured on boards yet"),
        ({"target": "nvidia-h200"}, TargetError, "has no int8 kernels here .choose a CPU"),
        ({"target": "cortex-m4"}, TargetError, "has no int8 kernels here .microcontrollers"),
        ({"inputs": (torch.randn(3, 6),)}, HwpruneError, "the example has a batch of 3"),
        ({"threads": 0}, HwpruneError, "0 threads"),
        ({"calibrate": torch.zeros(4, 6)}, HwpruneError, "all calibration inputs are zero"),
        ({"calibrate": torch.ones(4, 7)}, HwpruneError, "shape"),
    ],
)
def test_mistakes(tmp_path: Path, more: dict, kind: type, text: str) -> None:
    given = {"inputs": (torch.randn(1, 6),), "out": tmp_path / "out", **more}
    with pytest.raises(kind, match=text):
        compile_int8(torch.nn.Linear(6, 8), **given)
    assert not (tmp_path / "out").exists()


def test_an_operator_without_int8_is_named(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(x, 1)

    with pytest.raises(LoweringError, match=r"cumsum.*|no int8 kernel"):
        compile_int8(Odd(), (torch.randn(1, 6),), out=tmp_path / "out")


def test_int8_is_made_by_compile_alone(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="made by compile alone"):
        in_dtype(load_target("host"), "int8")
    with pytest.raises(TargetError, match="made by compile alone"):
        hwprune.prune(torch.nn.Linear(6, 8), (torch.randn(1, 6),), macs="50%", dtype="int8")
    assert tolerance(load_target("host")) == 1e-4
