"""Rewriting whole networks: certified, smaller, dynamic, trainable, saved, pruned again."""

import copy

import numpy as np
import pytest
import torch
from graph_helpers import MODELS, model_and_input, prune, random_plan
from torch import nn
from torch.utils._pytree import tree_leaves

from hwprune.capture import capture, fingerprint, specialize
from hwprune.couple import couple
from hwprune.errors import PlanError
from hwprune.plan import Plan
from hwprune.rewrite import kept_indices, rewrite
from hwprune.verify import verify


@pytest.mark.parametrize("name", MODELS)
def test_certified_and_smaller(name):
    model, x = model_and_input(name)
    program, coupling, plan, smaller, certificate = prune(model, (x,))
    certificate.check()
    assert certificate.max_rel_error < 1e-12
    assert certificate.gradient_rel_error < 1e-10
    before = sum(p.numel() for p in program.module.parameters())
    assert sum(p.numel() for p in smaller.module.parameters()) < 0.6 * before
    outputs = tree_leaves(smaller.module(torch.cat([x] * 3)))
    assert all(y.shape[0] == 3 for y in outputs)
    fixed = specialize(smaller)
    for node in fixed.module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and node.name in coupling.shapes and node.op != "output":
            sizes = [coupling.extent(node.name, d).at(plan.widths()) for d in range(value.ndim)]
            assert list(value.shape) == sizes, node


def test_shufflenet_survives_extreme_widths():
    model, x = model_and_input("shufflenet_v2_x1_0")
    for seed in (1, 2):
        prune(model, (x,), keep=0.05, seed=seed)[-1].check()


def test_smaller_model_trains_like_the_silenced_original():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.0),
        nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 16, 2),
    )  # fmt: skip
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    program, coupling, plan, smaller, _ = prune(net.eval(), (x[:1].float(),))
    kept = kept_indices(coupling, plan, program)
    large = copy.deepcopy(net).double().train()
    state = {**dict(large.named_parameters()), **dict(large.named_buffers())}
    with torch.no_grad():
        for name, dims in kept.items():
            for dim, index in dims.items():
                gone = np.setdiff1d(np.arange(state[name].shape[dim]), index)
                state[name].index_fill_(dim, torch.from_numpy(gone), 0.0)
    small = copy.deepcopy(smaller.module).double().train()
    a, b = large(x), small(x)
    assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    a.square().sum().backward()
    b.square().sum().backward()
    for name, parameter in small.named_parameters():
        wanted = state[name].grad
        for dim, index in kept.get(name, {}).items():
            wanted = wanted.index_select(dim, torch.from_numpy(index))
        assert torch.allclose(wanted, parameter.grad, rtol=1e-9, atol=1e-10), name


def test_original_is_untouched_and_shares_nothing():
    model, x = model_and_input("mlp")
    program, _, _, smaller, _ = prune(model, (x,))
    before = {k: v.clone() for k, v in program.module.state_dict().items()}
    with torch.no_grad():
        for parameter in smaller.module.parameters():
            parameter.zero_()
    for key, value in program.module.state_dict().items():
        assert torch.equal(value, before[key])
    assert torch.equal(program.module(x), model(x))


def test_full_plan_is_the_same_function():
    model, x = model_and_input("squeezenet1_0")
    program = capture(model, (x,))
    coupling = couple(program)
    same = rewrite(program, coupling, Plan.full(coupling, fingerprint(program)))
    assert torch.equal(same.module(x), program.module(x))
    assert fingerprint(same) == fingerprint(program)


def test_saves_loads_and_prunes_again(tmp_path):
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 16, 3)
            self.b = nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.b(self.a(x)[:, 1::2].relu())

    x = torch.randn(2, 3, 8, 8)
    smaller = prune(Strided(), (x,), keep=0.7, seed=3)[3]
    assert any("index_select" in str(n.target) for n in smaller.module.graph.nodes)
    exported = torch.export.export(
        smaller.module, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(exported, tmp_path / "small.pt2")
    loaded = capture(tmp_path / "small.pt2")
    assert torch.equal(loaded.module(x), smaller.module(x))
    coupling = couple(loaded)
    plan = random_plan(loaded, coupling, 0.5)
    again = rewrite(loaded, coupling, plan)
    verify(loaded, coupling, plan, again).check()
    twin = copy.deepcopy(again.module)
    twin.load_state_dict(again.module.state_dict())
    assert torch.equal(twin(x), again.module(x))


def test_kept_indices_name_parameter_and_dimension():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    program = capture(net, (torch.randn(1, 4),))
    coupling = couple(program)
    plan = Plan(fingerprint(program), {"0": (1, 4)})
    kept = kept_indices(coupling, plan, program)
    assert {k: {d: i.tolist() for d, i in v.items()} for k, v in kept.items()} == {
        "0.weight": {0: [1, 4]},
        "0.bias": {0: [1, 4]},
        "2.weight": {1: [1, 4]},
    }
    with pytest.raises(PlanError, match="another model"):
        rewrite(program, coupling, Plan("other", plan.kept))
