"""weights.safetensors and load_pruned: the user's class again, from two files without pickle."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hwprune
from hwprune.errors import ArtifactError, ModelError, PlanError
from hwprune.result import save_pruned
from tests.small_net import SmallNet, small_net

X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 12)
        self.a, self.b = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
        self.b.weight = self.a.weight
        self.head = nn.Linear(12, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.table(words)).relu()).mean(1))


class Attention(nn.Module):
    """Two heads whose Python keeps no size of a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 64) for _ in range(3))
        self.out = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in self.layers]
        y = nn.functional.scaled_dot_product_attention(*parts, scale=0.5)
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A result, and the directory that it was written to."""
    out = tmp_path_factory.mktemp("pruned") / "out"
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    result = hwprune.prune(small_net(), (X,), macs="50%", calibrate=images)
    save_pruned(result, out)
    return result, out


def test_the_class_again_with_the_recovered_weights(saved):
    result, out = saved
    assert {"plan.json", "weights.safetensors", "model.pt2"} <= {f.name for f in out.iterdir()}
    model = hwprune.load_pruned(lambda: SmallNet().train(), out)
    assert type(model) is SmallNet
    assert not model.training
    assert model.left[0].out_channels < 64
    for name, tensor in result.module.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    x = torch.randn(5, 3, 32, 32)
    assert torch.allclose(model(x), result.module(x), rtol=1e-5, atol=1e-5)
    applied = result.apply_to(small_net())
    assert torch.equal(applied(x), model(x))


def test_tied_parameters_and_integer_inputs(tmp_path):
    words = torch.randint(0, 9, (2, 5), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    result = hwprune.prune(Tied(), (words,), params="60%")
    save_pruned(result, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "weights.safetensors")
    assert sum(name in stored for name in ("a.weight", "b.weight")) == 1
    model = hwprune.load_pruned(Tied, tmp_path / "out")
    assert model.a.weight is model.b.weight
    assert torch.allclose(model(words), result.module(words), rtol=1e-5, atol=1e-6)


def test_a_plan_brings_its_units_of_attentions(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6)
    result = hwprune.prune(Attention(), (x,), params="60%", attention="head_dim")
    assert result.plan.forms.attention == "head_dim"
    assert result.module.get_parameter("out.weight").shape[1] < 64
    save_pruned(result, tmp_path / "out")
    model = hwprune.load_pruned(Attention, tmp_path / "out")
    assert torch.allclose(model(x), result.module(x), rtol=1e-5, atol=1e-6)


def test_another_model_and_broken_files_are_refused(saved, tmp_path):
    _, out = saved
    with pytest.raises(PlanError, match=r"plan.json: the plan was made for another model"):
        hwprune.load_pruned(lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), out)
    with pytest.raises(ModelError, match="model_factory: made a int"):
        hwprune.load_pruned(lambda: 3, out)
    for name in ("plan.json", "weights.safetensors"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    weights = tmp_path / "weights.safetensors"
    tensors = load_file(weights)
    save_file(tensors, weights)
    with pytest.raises(ArtifactError, match="not the weights of a pruned model"):
        hwprune.load_pruned(SmallNet, tmp_path)
    about = {"format": "1", "tied": "{}", "inputs": json.dumps([[list(X.shape), "float32"]])}
    save_file({**tensors, "more": torch.ones(1)}, weights, about)
    with pytest.raises(ArtifactError, match="only the file has more"):
        hwprune.load_pruned(SmallNet, tmp_path)
    save_file({**tensors, "head.bias": torch.ones(3)}, weights, about)
    with pytest.raises(ArtifactError, match=r"head.bias has shape \(3,\)"):
        hwprune.load_pruned(SmallNet, tmp_path)
    save_file(tensors, weights, {**about, "format": "2"})
    with pytest.raises(ArtifactError, match="format 2"):
        hwprune.load_pruned(SmallNet, tmp_path)
    weights.write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match=r"weights.safetensors: cannot be read"):
        hwprune.load_pruned(SmallNet, tmp_path)
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"weights.safetensors: cannot be read"):
        hwprune.load_pruned(SmallNet, tmp_path)
