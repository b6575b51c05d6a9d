"""Thresholds: which units are weak, alone and beside a budget; what is refused."""

from __future__ import annotations

import json

import pytest
import torch

import hwprune
from hwprune.errors import BudgetError, HwpruneError
from hwprune.score.gather import gather
from tests.command_line import refused
from tests.small_net import small_net

X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def weakened(count: int = 20) -> torch.nn.Module:
    """The small network; the first `count` of 64 units of `left.0` are a hundredth as large."""
    net = small_net()
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            if name.startswith(("left.0", "left.1", "left.3", "left.4")):
                tensor[:count] *= 0.01
            if name == "left.6.weight":
                tensor[:, :count] *= 0.01
    return net


@pytest.mark.parametrize("normalize", [None, "sum", "gaussian"])
def test_what_is_weak_is_the_same_however_groups_are_compared(normalize) -> None:
    result = hwprune.prune(weakened(), (X,), threshold=0.01, normalize=normalize)
    assert result.plan.kept["left.0"] == tuple(range(20, 64))


def test_a_threshold_alone_removes_exactly_the_weak_units() -> None:
    result = hwprune.prune(weakened(), (X,), threshold=0.01)
    assert result.plan.kept["left.0"] == tuple(range(20, 64))
    assert len(result.plan.kept["stem.0"]) == 32
    assert result.certificate.passed
    params = sum(p.numel() for p in result.module.parameters())
    assert result.report["pruned"]["params"] == params == round(result.plan.predicted["params"])
    assert result.report["threshold"] == 0.01


def test_beside_a_budget_both_hold() -> None:
    loose = hwprune.prune(weakened(), (X,), threshold=0.01, macs="95%")
    assert not set(loose.plan.kept["left.0"]) & set(range(20))
    tight = hwprune.prune(weakened(), (X,), threshold=0.01, macs="30%")
    assert not set(tight.plan.kept["left.0"]) & set(range(20))
    assert tight.report["pruned"]["macs"] <= 0.3 * tight.report["dense"]["macs"]


@pytest.mark.slow
def test_beside_a_latency_both_hold() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(256, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 256)
    ).eval()
    with torch.no_grad():
        net[0].weight[:300] *= 0.001
        net[2].weight[:, :300] *= 0.001
    x = torch.randn(2, 256)
    loose = hwprune.prune(net, (x,), threshold=0.01, latency="98%")
    assert loose.plan.kept["0"] == tuple(range(300, 1024))  # the threshold says what goes
    tight = hwprune.prune(net, (x,), threshold=0.01, latency="40%")
    assert set(tight.plan.kept["0"]) < set(range(300, 1024))  # the budget takes more
    assert tight.report["ratio"] < loose.report["ratio"]
    assert tight.report["threshold"] == loose.report["threshold"] == 0.01


def test_data_are_gathered_once(monkeypatch) -> None:
    calls: list[str] = []

    def counted(*args, **kwargs):
        calls.append("gather")
        return gather(*args, **kwargs)

    monkeypatch.setattr("hwprune.score.scoring.gather", counted)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    options = {"importance": "wanda", "normalize": "share", "recover": "none"}
    result = hwprune.prune(weakened(), (X,), threshold=0.01, calibrate=images, **options)
    assert calls == ["gather"]
    assert not set(result.plan.kept["left.0"]) & set(range(20))


def test_a_vector_of_channels_stays() -> None:
    result = hwprune.prune(weakened(63), (X,), threshold=0.01)
    kept = result.plan.kept["left.0"]
    assert 63 in kept
    assert 1 < len(kept) <= 16


def test_what_no_threshold_removes_is_said() -> None:
    with pytest.raises(HwpruneError, match=r"no unit lies below 0.0001 .* the weakest has 0"):
        hwprune.prune(small_net(), (X,), threshold=0.0001)


@pytest.mark.parametrize("bad", [0, -0.1, 1.5, "x", float("nan")])
def test_no_threshold(bad) -> None:
    with pytest.raises(HwpruneError, match=r"threshold: .* is not a threshold"):
        hwprune.prune(small_net(), (X,), threshold=bad)


def test_a_plan_and_a_threshold_exclude_each_other(tmp_path) -> None:
    with pytest.raises(BudgetError, match="exclude each other"):
        hwprune.prune(small_net(), (X,), threshold=0.1, plan=tmp_path / "plan.json")


def test_on_the_command_line(run, tmp_path) -> None:
    words = ("prune", "tests.test_threshold:weakened", "--input", "1,3,32,32", "--json")
    done = run(*words, "--threshold", "0.01", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    after = {g["name"]: g["after"] for g in json.loads(done.out)["groups"]}
    assert after == {"stem.0": 32, "left.0": 44}
    refused(run(*words, "--threshold", "2", "--out", tmp_path / "no"), "threshold", "at most 1")
