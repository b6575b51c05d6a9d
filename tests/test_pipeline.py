"""The library end to end on a small network: prune, recover, compile, save, load."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import ArtifactError, BudgetError, HwpruneError, ModelError, TargetError
from tests.small_net import nan_net, small_net, unexportable

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


def test_prune_by_macs_and_params_measures_nothing() -> None:
    result = hwprune.prune(small_net(), (X,), macs="50%", params="60%")
    report = result.report
    assert report["pruned"]["macs"] <= 0.5 * report["dense"]["macs"]
    assert report["pruned"]["params"] <= 0.6 * report["dense"]["params"]
    assert "latency_us" not in report["pruned"]
    assert result.plan.widths()
    for name, kept in result.kept.items():
        tensor = result.module.get_parameter(name) if "running" not in name else None
        if tensor is not None:
            for dim, indices in kept.items():
                assert tensor.shape[dim] == len(indices)


def test_the_module_trains_copies_and_saves(tmp_path) -> None:
    module = hwprune.prune(small_net(), (X,), macs="50%").module
    batch = torch.randn(4, 3, 32, 32)
    module.train()
    nn.functional.cross_entropy(module(batch), torch.tensor([0, 1, 2, 3])).backward()
    assert all(p.grad is not None for p in module.parameters())
    module.eval()
    wanted = module(batch)
    twin = copy.deepcopy(module)
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(batch), wanted)
    assert torch.allclose(copy.deepcopy(module).double()(batch.double()).float(), wanted, atol=1e-4)
    torch.export.save(torch.export.export(module, (batch,)), tmp_path / "m.pt2")
    assert torch.allclose(torch.export.load(tmp_path / "m.pt2").module()(batch), wanted, atol=1e-5)


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
    import shutil

    copied = tmp_path / "copy"
    shutil.copytree(timed[0], copied)
    (copied / change).write_bytes(b"{]")
    with pytest.raises(ArtifactError, match=match):
        hwprune.load(copied)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, BudgetError, "no budget"),
        ({"macs": "120%"}, BudgetError, "more than"),
        ({"macs": "0.01%"}, BudgetError, "smallest reachable"),
        ({"latency": "fast"}, BudgetError, "not a budget"),
        ({"macs": "50%", "target": "x86-64-v5"}, TargetError, "x86-64-v4"),
        ({"macs": "50%", "importance": "magic"}, HwpruneError, "unknown importance"),
    ],
)
def test_bad_options(options, error, match) -> None:
    with pytest.raises(error, match=match):
        hwprune.prune(small_net(), (X,), **options)


@pytest.mark.parametrize(
    ("model", "inputs", "match"),
    [
        (nan_net, (X,), "head.weight"),
        (small_net, (torch.randn(1, 4, 32, 32),), "shape"),
        (small_net, (X, X), "inputs"),
        (unexportable, (torch.randn(2, 4),), "small_net.py"),
    ],
)
def test_bad_models(model, inputs, match) -> None:
    with pytest.raises(ModelError, match=match):
        hwprune.prune(model(), inputs, macs="50%")
