"""From a model to an artifact, on a small network: prune, recover, compile, save, load."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import ArtifactError
from tests.small_net import small_net

X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """One full run under a latency budget."""
    out = tmp_path_factory.mktemp("artifact") / "out"
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    result, artifact = hwprune.compile_pruned(
        small_net(), (X,), out=out, latency="60%", calibrate=images
    )
    return out, result, artifact


def test_writes_the_whole_artifact(timed) -> None:
    out, result, _ = timed
    names = {"model.so", "manifest.json", "model.pt2", "weights.safetensors", "plan.json"}
    names |= {"report.json", "report.html"}
    assert {f.name for f in out.iterdir()} == names
    report = json.loads((out / "report.json").read_text())
    for key in ("model", "target", "threads", "budget", "dense", "pruned", "search", "certificate"):
        assert key in report
    for side in ("dense", "pruned"):
        assert {"latency_us", "predicted_us", "params", "macs", "weight_bytes"} <= set(report[side])
    assert report["certificate"]["passed"]
    assert report["pruned"]["params"] == sum(p.numel() for p in result.module.parameters())
    assert report["pruned"]["params"] < report["dense"]["params"]
    assert report["fidelity"]["cosine"] > 0.3
    assert report["sources"]["measured"] > 0
    assert "<html" in (out / "report.html").read_text()


def test_the_artifact_computes_what_the_module_does(timed) -> None:
    out, result, artifact = timed
    wanted = result.module(X).detach().numpy()
    for found in (artifact(X.numpy()), hwprune.load(out)(X.numpy())):
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_loading_needs_no_torch(timed) -> None:
    out, _, _ = timed
    code = (
        "import sys, numpy as np, hwprune\n"
        f"a = hwprune.load({str(out)!r})\n"
        "y = a(np.zeros((1, 3, 32, 32), np.float32))\n"
        "assert y.shape == (1, 10) and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_second_run_measures_nothing_again(timed) -> None:
    result = hwprune.prune(small_net(), (X,), latency="60%")
    assert result.report["sources"]["newly_measured"] == 0


def test_the_saved_model_can_be_pruned_again(timed) -> None:
    out, result, _ = timed
    again = hwprune.prune(out / "model.pt2", macs="80%")
    assert again.report["dense"]["params"] == result.report["pruned"]["params"]


def test_compile_takes_any_module() -> None:
    artifact = hwprune.compile(nn.Sequential(nn.Linear(12, 7), nn.ReLU()), (torch.randn(2, 12),))
    assert artifact(np.ones((2, 12), np.float32)).shape == (2, 7)
    with pytest.raises(ArtifactError, match="expects float32"):
        artifact(np.ones((1, 12), np.float32))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("manifest.json", "manifest"),
        ("model.so", "hash"),
        ("plan.json", "hash"),
    ],
)
def test_a_corrupt_artifact_is_refused(timed, tmp_path, change, match) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(timed[0], copied)
    (copied / change).write_bytes(b"{]")
    with pytest.raises(ArtifactError, match=match):
        hwprune.load(copied)
