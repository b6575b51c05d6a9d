"""The search over budgets: its front, its files, going on, and finishing a point."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import BudgetError, HwpruneError
from hwprune.front import pareto, read_front
from hwprune.program import Program
from tests.command_line import refused

X = torch.randn(2, 256, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(40, 256, generator=torch.Generator().manual_seed(1))
NET = ("tests.test_front:network", "--input", "2,256")


def network() -> nn.Module:
    """Two layers and one group between them: few kernels to measure."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 256)).eval()


def parameters(module: nn.Module) -> float:
    """A judge whose answers are known: how many parameters there are."""
    return float(sum(p.numel() for p in module.parameters()))


def doubled(program: Program) -> Program:
    """A recovery that shows."""
    with torch.no_grad():
        program.module.get_parameter("2.bias").add_(1000.0)
    return program


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("front") / "search"
    return out, hwprune.search(
        network(), (X,), out=out, budgets=("60%", "0.5%"), evaluate=parameters,
        recover="none", name="network",
    )  # fmt: skip


def test_pareto() -> None:
    points = [(1.0, 0.9), (0.5, 0.8), (0.6, 0.7), (0.5, 0.6), (0.4, 0.1)]
    assert pareto(points) == [True, True, False, False, True]
    assert pareto([(1.0, 0.5), (1.0, 0.5)]) == [True, True]


def test_the_front_is_measured_and_kept(searched) -> None:
    out, front = searched
    assert [p.budget for p in front.points] == ["100%", "60%"]
    assert front.points[0].ratio == 1.0
    assert all(p.latency_us > 0 for p in front.points)
    assert front.points[1].ratio < 0.9
    assert [p.quality for p in front.points] == [p.params for p in front.points]
    assert front.points[0].on_front
    assert len(front.missed) == 1
    assert "0.5%" in front.missed[0]
    assert "smallest reachable" in front.missed[0]
    assert read_front(out / "search.json") == front
    assert "<svg" in (out / "search.svg").read_text()
    for p in front.points[1:]:
        assert {"model.pt2", "plan.json", "report.json"} <= {
            f.name for f in (out / p.directory).iterdir()
        }


def test_goes_on_without_pruning_again(searched, monkeypatch) -> None:
    out, front = searched

    def fail(*_, **__):
        raise AssertionError("pruned again")

    monkeypatch.setattr("hwprune.front_search.prune", fail)
    options = {"out": out, "evaluate": parameters, "recover": "none", "name": "network"}
    again = hwprune.search(network(), (X,), budgets=("60%",), **options)
    assert [p.params for p in again.points] == [p.params for p in front.points]
    with pytest.raises(HwpruneError, match="made with measure 'accuracy', now it is 'agreement'"):
        hwprune.search(network(), (X,), out=out, recover="none", calibrate=IMAGES)


def test_without_labels_held_out_inputs_judge(searched, tmp_path) -> None:
    front = hwprune.search(network(), (X,), out=tmp_path / "s", budgets=("60%",), calibrate=IMAGES)
    assert front.measure == "agreement"
    held_out = IMAGES[::4]
    found = []
    with torch.no_grad():
        wanted = network()(held_out).argmax(1)
        for p in front.points:
            pruned = torch.export.load(tmp_path / "s" / p.directory / "model.pt2").module()
            found.append(float((pruned(held_out).argmax(1) == wanted).float().mean()))
    assert [p.quality for p in front.points] == pytest.approx(found)
    assert found[0] == 1.0
    assert found[1] < 1.0
    report = json.loads((tmp_path / "s" / front.points[1].directory / "report.json").read_text())
    assert report["fidelity"]["on"] == "held-out calibration images"
    assert report["fidelity"]["images"] == 10
    assert report["recovery"]  # on the other thirty


def test_a_point_is_finished(searched, run, tmp_path) -> None:
    out, front = searched
    words = ("compile", "--from", out / "search.json", "--point", 1)
    done = run(*words, "--out", tmp_path / "out", "--json")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert report["search_point"]["budget"] == "60%"
    assert report["pruned"]["params"] == front.points[1].params
    assert 0 < report["ratio"] < 0.95
    artifact = hwprune.load(tmp_path / "out")
    module = torch.export.load(tmp_path / "out" / "model.pt2").module()
    wanted = module(X).detach().numpy()
    assert np.abs(artifact(X.numpy()) - wanted).max() <= 1e-4 * np.abs(wanted).max()
    loaded = hwprune.load_pruned(network, tmp_path / "out")
    assert torch.allclose(loaded(X), torch.from_numpy(wanted), atol=1e-4)
    done = run(
        *words, "--recover", "tests.test_front:doubled", "--out", tmp_path / "more", "--json"
    )
    assert done.status == 0, done.err
    assert hwprune.load(tmp_path / "more")(X.numpy()).min() > 900
    assert json.loads(done.out)["fidelity"] is None  # what the search saw is another network


def test_points_that_there_are_not(searched, run, tmp_path) -> None:
    path, out = searched[0] / "search.json", tmp_path / "out"
    refused(run("compile", "--from", path, "--point", 7, "--out", out), "no point 7", "1 to 1")
    refused(run("compile", "--from", path, "--out", out), "both --from and --point")
    refused(run("compile", "--out", out), "needs a MODEL")
    words = ("compile", *NET, "--from", path, "--point", 1, "--out", out)
    refused(run(*words, "--macs", "50%"), "MODEL, macs exclude each other")
    bad = tmp_path / "search.json"
    refused(run("compile", "--from", bad, "--point", 1, "--out", out), "cannot be read")
    bad.write_text("{}")
    refused(run("compile", "--from", bad, "--point", 1, "--out", out), "not the result of a search")
    assert not out.exists()


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"evaluate": None}, HwpruneError, "nothing judges"),
        ({"budgets": ()}, BudgetError, "no budgets"),
        ({"budgets": ("50%", "50%")}, BudgetError, "different shares"),
        ({"budgets": ("8ms",)}, BudgetError, "shares of the dense"),
        ({"budgets": ("x",)}, BudgetError, "not a budget"),
        ({"recover": "magic"}, HwpruneError, "unknown recovery"),
        ({"importance": "magic"}, HwpruneError, "unknown importance 'magic'.*auto, apoz"),
        ({"importance": "taylor"}, HwpruneError, "'taylor' needs labelled batches"),
        ({"evaluate": None, "calibrate": IMAGES[:3]}, HwpruneError, "of 3 inputs none is left"),
        ({"evaluate": None, "calibrate": IMAGES[:0]}, HwpruneError, "no calibration inputs"),
    ],
)
def test_bad_requests(tmp_path, options, error, match) -> None:
    given = {"out": tmp_path / "out", "evaluate": parameters, **options}
    with pytest.raises(error, match=match):
        hwprune.search(network(), (X,), **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_work")
def test_one_output_is_no_agreement(tmp_path) -> None:
    net = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1)).eval()
    with pytest.raises(HwpruneError, match="evaluate: networks with one output always agree"):
        hwprune.search(net, (X,), out=tmp_path / "out", calibrate=IMAGES)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_work")
def test_on_the_command_line(run, tmp_path) -> None:
    out = tmp_path / "out"
    refused(run("search", *NET, "--out", out), "nothing judges")
    refused(run("search", *NET, "--evaluate", "tests", "--out", out), "--evaluate takes")
    refused(run("search", *NET, "--evaluate", "tests.test_front:X", "--out", out), "not callable")
