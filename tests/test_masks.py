"""Masks: which weights go, what stays of them in training, and an honest account of the saving."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import ArtifactError, HwpruneError, ModelError
from hwprune.ways.sparse_file import SPARSE, read_sparse, sparse_bytes
from tests.command_line import refused
from tests.small_net import small_net

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def wide(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64 * 144, 10)).eval()


def test_the_smallest_weights_of_all_layers_go() -> None:
    model = wide()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim > 1}
    masked = hwprune.mask(model, amount=0.7)
    assert masked.module is model
    every = torch.cat([w.abs().flatten() for w in before.values()])
    limit = every.kthvalue(round(0.7 * len(every))).values
    for name, weight in before.items():
        wanted = torch.where(weight.abs() > limit, weight, 0.0)
        assert torch.equal(model.get_parameter(name), wanted), name
    assert masked.report["share"] == pytest.approx(0.7, abs=1e-4)
    assert masked.report["zeros"] == round(0.7 * masked.report["weights"])


def test_what_is_saved_on_disk_is_really_written() -> None:
    model = wide()
    size = hwprune.mask(model, amount=0.8).report["bytes"]
    assert size["bitmap_deflated"] < 0.3 * size["dense"]  # a fifth of the values, a bit for each
    assert size["bitmap_deflated"] < size["masked_deflated"] < 0.5 * size["dense_deflated"]
    assert size["dense_deflated"] > 0.85 * size["dense"]  # weights themselves hardly compress
    data = sparse_bytes(model.state_dict())
    assert len(data) == size["bitmap_deflated"]
    found = read_sparse(data)
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(t, found[n]) for n, t in model.state_dict().items())


def test_two_of_four_along_the_inputs() -> None:
    model = wide()
    before = model[2].weight.detach().clone()
    report = hwprune.mask(model, pattern="2:4").report
    assert report["skipped"] == ["0"]  # three inputs
    blocks = model[2].weight.detach().permute(0, 2, 3, 1).reshape(-1, 4)
    whole = before.permute(0, 2, 3, 1).reshape(-1, 4)
    assert ((blocks != 0).sum(1) == 2).all()
    gone = torch.where(blocks == 0, whole.abs(), 0.0).amax(1)
    stay = torch.where(blocks != 0, whole.abs(), torch.inf).amin(1)
    assert (gone <= stay).all()
    assert ((model[5].weight.reshape(-1, 4) != 0).sum(1) == 2).all()


def test_masks_stay_in_training() -> None:
    model = wide()
    hwprune.mask(model, amount=0.5, permanent=False)
    zero = model[2].weight == 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    model(X)
    assert (model[2].weight[zero] == 0).all()
    with pytest.raises(ModelError, match="masked already"):
        hwprune.mask(model, amount=0.5)


def test_no_latency_is_gained() -> None:
    latency = hwprune.mask(small_net(), amount=0.9, inputs=(X,)).report["latency"]
    assert latency["source"] == "device"
    assert latency["dense_us"] > 0 < latency["masked_us"]
    assert 0.5 < latency["ratio"] < 2  # nine tenths of the weights are gone


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "an amount or a pattern"),
        ({"amount": 0.5, "pattern": "2:4"}, "an amount or a pattern"),
        ({"amount": 1.0}, "no share"),
        ({"amount": float("nan")}, "no share"),
        ({"pattern": "4:2"}, "no pattern"),
        ({"pattern": "half"}, "no pattern"),
        ({"pattern": "2:7"}, "multiple of 7"),
    ],
)
def test_bad_requests_leave_the_model(options, match) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    before = model[0].weight.detach().clone()
    with pytest.raises(HwpruneError, match=match):
        hwprune.mask(model, **options)
    assert torch.equal(model[0].weight, before)
    assert set(model.state_dict()) == {"0.weight", "0.bias"}


def test_nothing_to_mask_and_corrupt_files() -> None:
    with pytest.raises(ModelError, match="to mask"):
        hwprune.mask(nn.ReLU(), amount=0.5)
    data = sparse_bytes(nn.Linear(4, 4).state_dict())
    for bad in (b"", data[:-9], b"?" + data[1:]):
        with pytest.raises(ArtifactError, match="not sparse weights"):
            read_sparse(bad)


def test_on_the_command_line(run, tmp_path) -> None:
    words = ("mask", "tests.test_masks:wide", "--input", "1,3,16,16", "--json")
    done = run(*words, "--pattern", "1:4", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert json.loads(done.out)["share"] > 0.7
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert names == {"model.pt2", SPARSE, "mask.json"}
    module = torch.export.load(tmp_path / "out" / "model.pt2").module()
    found = read_sparse((tmp_path / "out" / SPARSE).read_bytes())
    assert torch.equal(found["2.weight"], module.state_dict()["2.weight"])
    refused(run(*words, "--amount", "2", "--out", tmp_path / "no"), "amount", "below 1")
    assert not (tmp_path / "no").exists()
