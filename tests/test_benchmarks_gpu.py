"""The validation of GPU predictions against published tables: errors and a stored calibration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu_prediction import main
from hwprune.predict.calibration import Calibrated
from hwprune.predict.gpu_work import GPU_TERMS
from tests.test_benchmarks_arm import table


def run(*words: object) -> int:
    return main([str(word) for word in words])


def of_gpu(path: Path, device: str = "tx2", count: int = 30) -> Path:
    text = table(path, device, count).read_text()
    path.write_text(text.replace("aarch64,conv2d_nchw_spatial_pack.arm_cpu", "cuda,conv2d_nchw"))
    return path


def test_a_table_is_judged_and_kept(tmp_path: Path) -> None:
    given, out, saved = of_gpu(tmp_path / "conv.csv"), tmp_path / "o.json", tmp_path / "model.json"
    asked = ("--conv", given, "--core", "jetson-tx2")
    assert run(*asked, "--out", out, "--save", saved) == 0
    by = {r["way"]: r for r in json.loads(out.read_text())["rows"] if r["kernels"] == "all"}
    assert by["cross-validated by layer"]["count"] == 30
    assert by["cross-validated by layer"]["rank_correlation"] > 0.97
    found = Calibrated.load(saved)
    assert (found.target, found.rows, found.terms) == ("jetson-tx2", 30, GPU_TERMS)
    assert run(*asked, "--no-fit", "--out", out) == 0
    ways = {r["way"] for r in json.loads(out.read_text())["rows"]}
    assert ways == {"proportional to MACs", "stored or described"}


def test_bad_input_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, few = of_gpu(tmp_path / "conv.csv"), of_gpu(tmp_path / "few.csv", count=3)
    for words, message in (
        (("--conv", given, "--core", "cortex-a72"), "is no GPU"),
        (("--conv", given, "--core", "nvidia-a100"), "its GPUs: tx2"),
        (("--conv", few, "--core", "jetson-tx2"), "at least 8"),
    ):
        assert run(*words) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert message in said
