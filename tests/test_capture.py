"""Capture: the graph is the model, trains like it, copies, saves, and refuses bad input."""

import copy

import pytest
import torch
from graph_helpers import MODELS, model_and_input, prune
from torch import nn
from torch.utils._pytree import tree_leaves

from hwprune.capture import capture, fingerprint, source_line, specialize
from hwprune.errors import ModelError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu_(self.norm(self.conv(x))).mean((2, 3))
        return self.head(self.drop(x))


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)[0]


class Undecided(nn.Module):
    def forward(self, x):
        if x.sum().item() > 0:
            return x
        return -x


@pytest.mark.parametrize("name", MODELS)
def test_graph_is_the_model_in_both_modes(name):
    model, x = model_and_input(name)
    program = capture(model, (x,))
    assert program.dynamic_batch
    for batch in (1, 3):
        more = torch.cat([x] * batch) + torch.arange(batch).reshape(-1, *[1] * (x.ndim - 1))
        with torch.no_grad():
            for a, b in zip(
                tree_leaves(model(more)), tree_leaves(program.module(more)), strict=True
            ):
                assert torch.equal(a, b)


def test_training_mode_and_gradients_match_the_original():
    model = Net()
    program = capture(model.eval(), (torch.randn(1, 3, 9, 9),))
    graph = copy.deepcopy(program.module).double().train()
    original = copy.deepcopy(model).double().train()
    x = torch.randn(5, 3, 9, 9, dtype=torch.float64)
    results = []
    for module in (original, graph):
        torch.manual_seed(0)
        y = module(x)
        y.square().sum().backward()
        results.append(y)
    assert torch.equal(results[0], results[1])
    gradients = dict(graph.named_parameters())
    for name, parameter in original.named_parameters():
        assert torch.equal(parameter.grad, gradients[name].grad), name
    assert torch.equal(original.norm.running_var, graph.state_dict()["norm.running_var"])
    original.eval(), graph.eval()
    assert torch.equal(original(x), graph(x))


def test_the_callers_module_keeps_its_mode():
    model = Net().train()
    model.norm.eval()
    capture(model, (torch.randn(1, 3, 9, 9),))
    assert model.training
    assert not model.norm.training


def test_layers_always_in_training_stay_so():
    class Always(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, training=True)

    module = capture(Always().eval(), (torch.ones(1, 1000),)).module
    for graph in (module, copy.deepcopy(module)):
        graph.train().eval()
        assert 0 < int((graph(torch.ones(1, 1000)) == 0).sum()) < 1000


def test_save_load_and_state_dict(tmp_path):
    x = torch.randn(2, 3, 9, 9)
    program = capture(Net().eval(), (x[:1],))
    batch = ({0: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(program.module, (x,), dynamic_shapes=batch)
    torch.export.save(exported, tmp_path / "net.pt2")
    loaded = capture(tmp_path / "net.pt2")
    assert loaded.name == "net"
    assert loaded.dynamic_batch
    assert fingerprint(loaded) == fingerprint(program)
    other = capture(Net().eval(), (x,))
    other.module.load_state_dict(program.module.state_dict())
    for module in (loaded.module, other.module):
        assert torch.equal(module(x), program.module(x))


def test_specialize_has_plain_sizes_and_the_same_names():
    class Views(nn.Module):
        def forward(self, x):
            return x.view(x.shape[0] * 2, x.shape[1] // 2).sum(1)

    x = torch.randn(3, 8)
    program = capture(Views(), (x,))
    fixed = specialize(program)
    names = [n.name for n in program.module.graph.nodes]
    kept = [n.name for n in fixed.module.graph.nodes]
    assert [n for n in names if n in kept] == kept
    assert not any("sym_size" in n or "mul" in n for n in kept)
    view = next(n for n in fixed.module.graph.nodes if n.name == "view")
    assert list(view.args[1]) == [6, 4]
    assert tuple(view.meta["val"].shape) == (6, 4)
    assert torch.equal(fixed.module(x), program.module(x))
    assert [n.name for n in program.module.graph.nodes] == names


def test_a_fixed_batch_is_kept():
    program = capture(FixedBatch(), (torch.randn(2, 4),))
    assert not program.dynamic_batch


def test_fingerprint_ignores_values_and_mode_but_not_shapes():
    x = torch.randn(1, 3, 9, 9)
    first, second = capture(Net(), (x,)), capture(Net(), (x,))
    second.module.train()
    assert fingerprint(first) == fingerprint(second)
    wider = Net()
    wider.head = nn.Linear(8, 5)
    assert fingerprint(capture(wider, (x,))) != fingerprint(first)


def test_source_line_is_the_users():
    program = capture(Net(), (torch.randn(1, 3, 9, 9),))
    conv = next(n for n in program.module.graph.nodes if n.name == "conv2d")
    assert "test_capture.py" in source_line(conv)
    assert "self.conv(x)" in source_line(conv)


def test_bad_input_is_told_clearly(tmp_path):
    net, x = Net(), torch.randn(1, 3, 9, 9)
    with pytest.raises(ModelError, match=r"does not run on inputs of shape \(1, 4, 9, 9\)"):
        capture(net, (torch.randn(1, 4, 9, 9),))
    with pytest.raises(ModelError, match="number and shapes of the inputs"):
        capture(net, (x, x))
    with pytest.raises(ModelError, match=r"test_capture.py:\d+.*cannot be exported"):
        capture(Undecided(), (x,))
    net.norm.bias.data[3] = float("nan")
    with pytest.raises(ModelError, match=r"norm.bias: the weights contain NaN"):
        capture(net, (x,))
    (tmp_path / "bad.pt2").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"bad.pt2: not a readable exported program"):
        capture(tmp_path / "bad.pt2")
    with pytest.raises(ModelError, match="no such file"):
        capture(tmp_path / "none.pt2")
    exported = torch.export.export(Net().eval(), (x,))
    with pytest.raises(ModelError, match=r"takes \(1,3,9,9\)"):
        capture(exported, (torch.randn(1, 3, 8, 8),))
    with pytest.raises(ModelError, match="takes 1 inputs, not 2"):
        capture(exported, (x, x))


def test_what_runs_without_autocast_is_pruned_like_the_rest():
    class Guarded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            x = self.a(x)
            with torch.autocast("cpu", enabled=False):
                y = self.b(x.float().relu())
                z = x.float().sigmoid()
            return self.c(y) + z.sum(1, keepdim=True) * 0

    net, x = Guarded().eval(), torch.randn(2, 4)
    program, coupling, *_, certificate = prune(net, (x,))
    assert torch.equal(program.module(x), net(x))
    assert not [n for n in program.module.graph.nodes if "autocast" in str(n.target)]
    assert [g.name for g in coupling.groups] == ["b"]
    certificate.check()
