"""The user's own module made smaller: same function as the graph, or refused and untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from graph_helpers import model_and_input, prune
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hwprune.errors import ModelError
from hwprune.inplace import apply_in_place
from tests.small_net import SmallNet, small_net


class Layers(nn.Module):
    """A layer of every type whose attributes hold sizes, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.tied = nn.Linear(8, 12, bias=False)
        self.twice = nn.Linear(8, 12, bias=False)
        self.twice.weight = self.tied.weight
        self.grouped = nn.Conv1d(12, 24, 1, groups=4)
        self.act = nn.PReLU(24)
        self.norm = nn.BatchNorm1d(24)
        self.instance = nn.InstanceNorm1d(24, affine=True)
        self.up = nn.ConvTranspose1d(24, 9, 2, stride=2)
        self.depth = nn.Conv1d(9, 9, 3, padding=1, groups=9)
        self.out = nn.Conv1d(9, 16, 1)
        self.group_norm = nn.GroupNorm(2, 16)
        self.layer_norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, words: Tensor) -> dict[str, Tensor]:
        x = self.table(words)
        x = (self.tied(x) + self.twice(x.relu())).transpose(1, 2)
        x = self.instance(self.norm(self.act(self.grouped(x))))
        x = self.group_norm(self.out(self.depth(self.up(x))))
        return {"scores": self.head(self.layer_norm(x.transpose(1, 2)).mean(1))}


class Heads(nn.Module):
    """Attributes of the user's own module with a usual name follow."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 6
        self.into, self.out = nn.Linear(5, 24), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x).view(-1, self.num_heads, self.head_dim)
        return self.out(torch.tanh(x).reshape(-1, self.num_heads * self.head_dim))


def words() -> Tensor:
    return torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(0))


SMALL = {"layers": (Layers, words), "small_net": (small_net, lambda: torch.randn(2, 3, 16, 16))}
BIG = ["resnet18", "mobilenet_v2", "efficientnet_b0", "convnext_tiny"]


def applied(name: str) -> tuple[nn.Module, nn.Module, nn.Module, Tensor]:
    """(the dense model, it made smaller in place, the smaller graph module, an input)."""
    if name in SMALL:
        factory, given = SMALL[name]
        model, x = factory().eval(), given()
    else:
        model, x = model_and_input(name)
        x = x[..., :32, :32].contiguous()
    dense, _, _, smaller, certificate = prune(model, (x,))
    certificate.check()
    return model, apply_in_place(copy.deepcopy(model), dense, smaller), smaller.module, x


@pytest.fixture(
    scope="module", params=[*SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in BIG)]
)
def forms(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, nn.Module, Tensor]:
    return applied(request.param)


def flat(output: object) -> Tensor:
    (tensor,) = output.values() if isinstance(output, dict) else (output,)
    return tensor


def test_same_function_and_the_same_class(forms):
    dense, model, graph, x = forms
    assert type(model) is type(dense)
    assert torch.allclose(flat(model(x)), flat(graph(x)), rtol=1e-5, atol=1e-5)
    count = sum(p.numel() for p in model.parameters())
    assert count == sum(p.numel() for p in graph.parameters())
    assert count < sum(p.numel() for p in dense.parameters())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            wide = (module.out_channels, module.in_channels // module.groups)
            assert tuple(module.weight.shape[:2]) == wide
        if isinstance(module, nn.Linear):
            assert tuple(module.weight.shape) == (module.out_features, module.in_features)
        if isinstance(module, nn.BatchNorm2d):
            assert len(module.running_mean) == module.num_features


def test_state_dicts_fit_strictly_both_ways_and_copies_are_alike(forms):
    _, model, graph, x = forms
    wanted = flat(graph(x))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
    twin.load_state_dict(graph.state_dict(), strict=True)
    assert torch.allclose(flat(twin(x)), wanted, rtol=1e-5, atol=1e-5)
    other = copy.deepcopy(graph)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(flat(other(x)), wanted)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_both_forms_train_under_ddp(forms, process_group):
    _, *both, x = forms
    x = torch.cat([x, x.flip(-1)]) if len(x) == 1 else x
    for module in both:
        parallel = DistributedDataParallel(copy.deepcopy(module).train())
        flat(parallel(x)).square().sum().backward()
        optimiser = torch.optim.SGD(parallel.parameters(), 1e-3)
        assert all(p.grad is not None for p in parallel.parameters())
        before = [p.detach().clone() for p in parallel.parameters()]
        optimiser.step()
        moved = [not torch.equal(a, b) for a, b in zip(before, parallel.parameters(), strict=True)]
        assert sum(moved) > len(moved) // 2


def test_both_forms_compile(forms):
    dense, *both, x = forms
    backend = "aot_eager" if isinstance(dense, Layers | SmallNet) else "eager"
    for module in both:
        torch.compiler.reset()
        compiled = torch.compile(module, backend=backend, fullgraph=True)
        with torch.no_grad():
            assert torch.allclose(flat(compiled(x)), flat(module(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_both_forms_export_to_onnx(name, tmp_path):
    import onnx
    from onnx.reference import ReferenceEvaluator

    _, *both, x = applied(name)
    for module in both:
        torch.onnx.export(module, (x,), tmp_path / "m.onnx", dynamo=True, external_data=False)
        exported = onnx.load(tmp_path / "m.onnx")
        onnx.checker.check_model(exported)
        feed = {exported.graph.input[0].name: x.numpy()}
        (found,) = ReferenceEvaluator(exported).run(None, feed)
        assert torch.allclose(torch.from_numpy(found), flat(module(x)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_computed_shrink_in_place(way):
    model = nn.Sequential(way(nn.Conv2d(3, 8, 1)), nn.ReLU(), way(nn.Conv2d(8, 6, 1, groups=2)))
    x = torch.randn(1, 3, 4, 4)
    dense, _, _, smaller, certificate = prune(model, (x,))
    certificate.check()
    made = apply_in_place(model, dense, smaller)
    assert torch.allclose(made(x), smaller.module(x), atol=1e-6)
    assert (made[0].out_channels, made[2].in_channels, made[2].out_channels) == (4, 4, 6)


def test_ties_and_settings_stay():
    dense, model, _, _ = applied("layers")
    assert model.twice.weight is model.tied.weight
    assert len(model.tied.weight) < len(dense.tied.weight)
    assert model.grouped.groups in (1, 2, 3, 4)
    assert model.act.num_parameters == model.norm.num_features == model.instance.num_features
    assert not model.training


def test_frozen_parameters_train_mode_and_type_stay():
    model = small_net().train()
    model.head.weight.requires_grad_(False)
    x = torch.randn(1, 3, 16, 16)
    dense, *_, smaller, _ = prune(model, (x,))
    model.double()
    apply_in_place(model, dense, smaller)
    assert model.training
    assert model.head.weight.dtype is torch.float64
    assert not model.head.weight.requires_grad
    assert model.stem[0].weight.requires_grad


def test_attributes_with_usual_names_follow():
    model = Heads()
    dense, coupling, _, smaller, _ = prune(model, (torch.randn(3, 5),))
    assert coupling.groups
    before = (model.num_heads, model.head_dim)
    apply_in_place(model, dense, smaller)
    assert model.num_heads * model.head_dim == model.into.out_features < 24
    assert (model.num_heads, model.head_dim) != before


# What is refused


class Refused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 4, 1)
        self.sizes = [2, 7, 3]


class LiteralView(Refused):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).view(x.shape[0], 4, 3, 8, 8)  # the line
        return self.second(y.transpose(1, 2).reshape(x.shape[0], -1, 8, 8))


class SplitSizes(Refused):
    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.first(x).split(self.sizes, 1)  # the line
        return self.second(torch.cat([c, a, b], 1))


class LiteralSlice(Refused):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = torch.cat([y[:, :6].sigmoid(), y[:, 6:]], 1)  # the line
        return self.second(y)


@pytest.mark.parametrize("kind", [LiteralView, SplitSizes, LiteralSlice])
def test_a_size_in_python_is_refused_with_its_line_and_nothing_changes(kind):
    model, x = kind(), torch.randn(2, 3, 8, 8)
    dense, _, _, smaller, _ = prune(model, (x,))
    before, output = copy.deepcopy(model.state_dict()), model(x)
    with pytest.raises(ModelError, match=r"test_inplace.py:\d+  .*# the line: .*old size"):
        apply_in_place(model, dense, smaller)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert model.first.out_channels == 12
    assert torch.equal(model(x), output)


def test_another_model_is_refused():
    dense, *_, smaller, _ = prune(small_net(), (torch.randn(1, 3, 16, 16),))
    with pytest.raises(ModelError, match="the model that was pruned has this parameter"):
        apply_in_place(Layers(), dense, smaller)
    model = SmallNet()
    model.head = nn.Linear(32, 7)
    with pytest.raises(ModelError, match=r"head.weight: has shape \(7, 32\)"):
        apply_in_place(model, dense, smaller)
    model = small_net()
    apply_in_place(model, dense, smaller)
    with pytest.raises(ModelError, match="as it was before pruning"):
        apply_in_place(model, dense, smaller)


def test_an_interruption_changes_nothing(monkeypatch):
    model = small_net()
    dense, *_, smaller, _ = prune(model, (torch.randn(1, 3, 16, 16),))
    before = dict(model.named_parameters())
    monkeypatch.setattr("hwprune.inplace._check", lambda *_: None)
    real = nn.Module.__setattr__

    def interrupted(self, name, value):
        if self is model.head and name == "in_features" and value != 32:
            raise KeyboardInterrupt
        real(self, name, value)

    monkeypatch.setattr(nn.Module, "__setattr__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apply_in_place(model, dense, smaller)
    assert all(before[n] is p for n, p in model.named_parameters())
    assert model.stem[0].out_channels == 32
