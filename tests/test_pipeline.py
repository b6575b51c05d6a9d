"""From a small network to a smaller one, and what cannot be pruned."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import BudgetError, HwpruneError, ModelError, TargetError
from tests.small_net import nan_net, small_net, unexportable

X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


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
