"""The validation against published tables: errors, devices, networks, a stored calibration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.arm_networks import layers
from benchmarks.arm_prediction import main
from benchmarks.prediction import errors
from hwprune.predict.calibration import Calibrated
from hwprune.predict.conv_shape import ConvShape
from hwprune.predict.published import COLUMNS

HEAD = ",".join(COLUMNS)


def table(path: Path, device: str = "board", count: int = 60, weights_bound: bool = False) -> Path:
    """Made-up rows: a known rate a multiply-accumulate, a known rate a byte, a little noise."""
    random = np.random.default_rng(0)
    lines = [HEAD]
    for _ in range(count):
        channels, out = (int(8 * random.integers(1, 40)) for _ in range(2))
        size, kernel = int(random.choice((7, 14, 28))), int(random.choice((1, 3)))
        macs = size * size * channels * out * kernel**2
        us = 5 + macs / 8e3 + 4 * size * size * (channels + out) / 4e3
        us += 4 * channels * out * kernel**2 / 4e3 if weights_bound else 0
        ms = us * np.exp(0.02 * random.normal()) / 1000
        pad = f'"[{kernel // 2},{kernel // 2},{kernel // 2},{kernel // 2}]"'
        lines.append(
            f"{device},aarch64,conv2d_nchw_spatial_pack.arm_cpu,1,{channels},{out},{size},{size},"
            f"{kernel},{kernel},1,{pad},1,{ms}"
        )
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_errors_are_what_they_say() -> None:
    found = errors(np.array([1.1, 1.8, 3.0]), np.array([1.0, 2.0, 3.0]))
    assert found["mape_percent"] == pytest.approx(6.67, abs=0.01)
    assert found["rank_correlation"] == 1.0


def test_a_known_core_is_found_again(tmp_path: Path) -> None:
    out, saved = tmp_path / "out.json", tmp_path / "model.json"
    given = table(tmp_path / "conv.csv")
    asked = ("--conv", given, "--core", "cortex-a72", "--threads", 2)
    assert run(*asked, "--out", out, "--save", saved) == 0
    rows = json.loads(out.read_text())["rows"]
    by = {r["way"]: r for r in rows if r["kernels"] == "all"}
    layer, counted = by["cross-validated by layer"], by["proportional to MACs"]
    assert layer["count"] == 60
    assert layer["mape_percent"] < 0.9 * counted["mape_percent"]
    assert layer["rank_correlation"] > 0.99
    found = Calibrated.load(saved)
    assert (found.target, found.rows, found.model.residual) == ("cortex-a72", 60, None)
    assert run(*asked, "--no-fit", "--out", out) == 0
    ways = {r["way"] for r in json.loads(out.read_text())["rows"]}
    assert ways == {"proportional to MACs", "stored calibration"}


def test_bad_input_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = table(tmp_path / "conv.csv")
    two = tmp_path / "two.csv"
    two.write_text(
        given.read_text() + table(tmp_path / "b.csv", "other").read_text().split("\n", 1)[1]
    )
    networks = tmp_path / "e2e.csv"
    networks.write_text("device,cores,resnet-18\nsomething,1,100\n")
    for words, message in (
        (("--conv", two, "--core", "cortex-a72"), "several devices: board, other"),
        (("--conv", given, "--core", "cortex-a1"), "unknown target"),
        (("--conv", given, "--core", "cortex-a72", "--device", "no"), "has no rows of 'no'"),
        (("--conv", tmp_path / "no.csv", "--core", "cortex-a72"), "cannot be read"),
        (("--conv", given, "--core", "cortex-a72", "--threads", 0), "at least 1"),
        (("--conv", given, "--core", "cortex-a72", "--e2e", networks, "--no-fit"), "no row for"),
    ):
        assert run(*words) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert message in said


def test_networks_are_read_off_their_own_code() -> None:
    shapes, linear_bytes = layers("mobilenet")
    assert len(shapes) == 27
    assert shapes[0] == ConvShape(1, 3, 32, 226, 226, 112, 112, 3, 3, 2, 1)
    assert round((sum(s.macs for s in shapes) + 1024 * 1000) / 1e6) == 569  # the paper, table 4
    assert linear_bytes == 4 * 1024 * 1000
