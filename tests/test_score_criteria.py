"""Every criterion against its published formula, written out by brute force on small networks."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwprune.capture import capture
from hwprune.couple import couple
from hwprune.errors import HwpruneError
from hwprune.score import AGGREGATES, CRITERIA, NORMALISATIONS, score
from hwprune.score.combine import normalise_groups, producers

GRADIENT = ("taylor", "snip", "obd", "fisher")
ACTIVATION = ("wanda", "apoz", "hrank", "reconstruction")


class Net(nn.Module):
    """A convolution, a depthwise one with its norm, a strided consumer and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.dw = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.b = nn.Conv2d(6, 5, 3, stride=2, padding=1)
        self.c = nn.Linear(5 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.a(x)))
        x = torch.relu(self.dw(x))
        return self.c(torch.relu(self.b(x)).flatten(1))


@pytest.fixture(scope="module")
def setup():
    torch.manual_seed(0)
    net = Net()
    nn.init.uniform_(net.bn.weight, 0.5, 1.5)
    nn.init.normal_(net.bn.bias, 0, 0.3)
    net.bn.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        net.dw.bias -= 0.1  # so that some channels are often zero
    net = net.eval()
    program = capture(net, (torch.randn(2, 3, 6, 6),))
    generator = torch.Generator().manual_seed(1)
    batches = [
        ((torch.randn(3, 3, 6, 6, generator=generator),), torch.tensor([0, 1, 3])),
        ((torch.randn(3, 3, 6, 6, generator=generator),), torch.tensor([2, 2, 0])),
    ]
    return net, program, couple(program), batches


def energies(setup, name: str, group: int) -> np.ndarray:
    """The raw energies of one group: that of six channels, or that of five."""
    _, program, coupling, batches = setup
    found = score(
        program, coupling, name, batches=batches, loss=functional.cross_entropy, normalize="none"
    )
    return found[next(g.name for g in coupling.groups if g.width == group)]


def share(values: Tensor) -> np.ndarray:
    """Scaled to mean one."""
    array = values.detach().double().numpy()
    return array / array.mean()


def filters(net: Net) -> list[Tensor]:
    """The weights of the six channels: made, passed on, and read, a row a channel."""
    tensors = (net.a.weight, net.dw.weight, net.b.weight.transpose(0, 1))
    return [t.detach().double().flatten(1) for t in tensors]


def lamp(row: Tensor) -> Tensor:
    energy = row.square().sum(1)
    return torch.stack([e / energy[energy >= e].sum() for e in energy])


def fpgm(row: Tensor) -> Tensor:
    return torch.stack([(row - f).square().sum(1).sqrt().sum() for f in row])


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("l1", lambda row: row.abs().sum(1)),
        ("l2", lambda row: row.square().sum(1)),
        ("linf", lambda row: row.abs().max(1).values),
        ("lamp", lamp),
        ("fpgm", fpgm),
    ],
)
def test_criteria_of_weights(setup, name, formula) -> None:
    wanted = np.mean([share(formula(row)) for row in filters(setup[0])], axis=0)
    np.testing.assert_allclose(energies(setup, name, 6), wanted, rtol=1e-6)


def test_batch_norm_scales(setup) -> None:
    wanted = share(setup[0].bn.weight.abs())
    np.testing.assert_allclose(energies(setup, "bn_scale", 6), wanted, rtol=1e-6)


def gradients(net: Net, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    functional.cross_entropy(net(inputs), labels).backward()
    return {n: p.grad.double() * p.detach().double() for n, p in net.named_parameters()}


def of_units(products: dict[str, Tensor], reduce) -> Tensor:
    """What each of the six channels has on every parameter: reduced by parameter, then summed."""
    parts = [products[n].flatten(1) for n in ("a.weight", "dw.weight")]
    parts += [products[n][:, None] for n in ("a.bias", "bn.weight", "bn.bias", "dw.bias")]
    parts += [products["b.weight"].transpose(0, 1).flatten(1)]
    return sum(reduce(part) for part in parts)


@pytest.mark.parametrize(
    ("name", "reduce"),
    [
        ("taylor", lambda gw: gw.sum(1).square()),
        ("snip", lambda gw: gw.abs().sum(1)),
        ("obd", lambda gw: 0.5 * gw.square().sum(1)),
    ],
)
def test_criteria_of_gradients(setup, name, reduce) -> None:
    net, _, _, batches = setup
    given = [(x, y) for (x,), y in batches]
    if name == "obd":
        given = [(x[i : i + 1], y[i : i + 1]) for x, y in given for i in range(3)]
    wanted = sum(of_units(gradients(net, x, y), reduce) for x, y in given) / len(given)
    np.testing.assert_allclose(energies(setup, name, 6), wanted.numpy(), rtol=1e-4)


def test_group_fisher(setup) -> None:
    """The squared gradients, sample by sample, of masks on what the two readers read."""
    net, _, _, batches = setup
    wanted = torch.zeros(6)
    for (inputs,), labels in batches:
        for x, y in zip(inputs.split(1), labels.split(1), strict=True):
            mask = torch.ones(1, 6, 1, 1, requires_grad=True)
            hidden = torch.relu(net.dw(torch.relu(net.bn(net.a(x))) * mask)) * mask
            out = net.c(torch.relu(net.b(hidden)).flatten(1))
            (found,) = torch.autograd.grad(functional.cross_entropy(out, y), mask)
            wanted += 0.5 * found.flatten().square() / 6
    np.testing.assert_allclose(energies(setup, "fisher", 6), wanted.numpy(), rtol=1e-4)


def values(net: Net, batches) -> tuple[Tensor, Tensor, Tensor]:
    """What the depthwise, the strided and the linear layer read."""
    x = torch.cat([inputs for (inputs,), _ in batches])
    with torch.no_grad():
        first = torch.relu(net.bn(net.a(x)))
        second = torch.relu(net.dw(first))
        return first, second, torch.relu(net.b(second))


def test_wanda(setup) -> None:
    net, _, _, batches = setup
    _, read, last = values(net, batches)
    norm = read.transpose(0, 1).flatten(1).norm(dim=1)
    wanted = (net.b.weight.abs() * norm[None, :, None, None]).sum((0, 2, 3))
    np.testing.assert_allclose(energies(setup, "wanda", 6), share(wanted), rtol=1e-5)
    metric = net.c.weight.abs() * last.flatten(1).norm(dim=0)[None]
    wanted = metric.sum(0).reshape(5, 9).sum(1)
    np.testing.assert_allclose(energies(setup, "wanda", 5), share(wanted), rtol=1e-5)


def test_average_percentage_of_zeros(setup) -> None:
    net, _, _, batches = setup
    first, second, _ = values(net, batches)
    rows = [share((v != 0).double().mean((0, 2, 3))) for v in (first, second)]
    assert rows[1].min() < 1  # some are zero
    np.testing.assert_allclose(energies(setup, "apoz", 6), np.mean(rows, axis=0), rtol=1e-6)


def test_rank_of_feature_maps(setup) -> None:
    net, _, _, batches = setup
    rows = []
    for value in values(net, batches)[:2]:
        ranks = [[np.linalg.matrix_rank(m) for m in image] for image in value.numpy()]
        rows.append(share(torch.tensor(ranks).double().mean(0)))
    np.testing.assert_allclose(energies(setup, "hrank", 6), np.mean(rows, axis=0), rtol=1e-6)


def test_error_of_reconstruction(setup) -> None:
    """The variance of what a channel alone gives to the consumer's outputs."""
    net, _, _, batches = setup
    _, read, last = values(net, batches)
    wanted = []
    for unit in range(6):
        alone = torch.zeros_like(read)
        alone[:, unit] = read[:, unit]
        out = functional.conv2d(alone, net.b.weight, None, 2, 1).transpose(0, 1).flatten(1)
        wanted.append(out.double().var(1, correction=0).sum())
    np.testing.assert_allclose(
        energies(setup, "reconstruction", 6), share(torch.stack(wanted)), rtol=1e-4
    )
    wanted = []
    for unit in range(5):
        part = last.flatten(1)[:, 9 * unit : 9 * unit + 9] @ net.c.weight[:, 9 * unit :][:, :9].T
        wanted.append(part.double().var(0, correction=0).sum())
    np.testing.assert_allclose(
        energies(setup, "reconstruction", 5), share(torch.stack(wanted)), rtol=1e-4
    )


@pytest.mark.parametrize("name", GRADIENT)
def test_gradients_without_labels_follow_the_outputs(setup, name) -> None:
    """A channel that reaches no output is worth nothing; the seed decides the projection."""
    _, program, coupling, batches = setup
    images = torch.cat([x for (x,), _ in batches])
    program = replace(program, module=copy.deepcopy(program.module))
    with torch.no_grad():
        program.module.get_parameter("b.weight")[:, 1] = 0
    found = score(program, coupling, name, images=images, seed=3)
    again = score(program, coupling, name, images=images, seed=3)
    group = next(g.name for g in coupling.groups if g.width == 6)
    assert found[group].argmin() == 1
    assert found[group][1] < 1e-6 * found[group].sum()
    assert (found[group] == again[group]).all()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = self.qkv(self.norm(x)).reshape(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4)
        a = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(a.transpose(1, 2).reshape(x.shape))
        x = x + self.down(functional.gelu(self.up(x)))
        return self.head(x.mean(1))


@pytest.mark.parametrize("attention", ["heads", "head_dim"])
def test_every_group_of_an_attention_is_scored(attention) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 20, (6, 5))
    program = capture(Attention().eval(), (ids[:2],))
    coupling = couple(program, attention=attention, branches=True)
    assert len(coupling.branches) == 2
    for name in sorted(CRITERIA):
        found = score(program, coupling, name, images=ids, normalize="share")
        assert found.keys() == coupling.full.keys()
        for group, width in coupling.full.items():
            assert found[group].shape == (width,), name
            assert np.isfinite(found[group]).all(), name
            assert found[group].min() >= 0, name
            assert found[group].sum() > 0, name


@pytest.mark.parametrize("name", [*GRADIENT, *ACTIVATION])
def test_says_which_data_are_missing(setup, name) -> None:
    _, program, coupling, batches = setup
    with pytest.raises(HwpruneError, match=f"{name}.*needs.*calibrate"):
        score(program, coupling, name)
    with pytest.raises(HwpruneError, match="no batches"):
        score(program, coupling, name, batches=[], loss=functional.cross_entropy)
    if name in GRADIENT:
        with pytest.raises(HwpruneError, match="a loss"):
            score(program, coupling, name, batches=batches)


@pytest.mark.parametrize(
    ("loss", "label", "match"),
    [
        (functional.cross_entropy, 7, "batch 1: the loss fails.*labels fit"),
        (lambda y, labels: y[:, 0], 0, "batch 0: the loss is no single number"),
        (lambda y, labels: y.sum() * float("nan"), 0, "batch 0: the loss is nan"),
    ],
)
def test_says_what_is_wrong_with_the_loss(setup, loss, label, match) -> None:
    _, program, coupling, batches = setup
    given = [batches[0], (batches[1][0], torch.full((3,), label))]
    with pytest.raises(HwpruneError, match=match):
        score(program, coupling, "taylor", batches=given, loss=loss)


def test_the_network_is_left_as_it_was(setup) -> None:
    _, program, coupling, batches = setup
    program = replace(program, module=copy.deepcopy(program.module))
    program.module.zero_grad()
    before = copy.deepcopy(program.module.state_dict())
    parameters = dict(program.module.named_parameters())
    frozen = next(iter(parameters.values()))
    frozen.requires_grad_(False)
    score(program, coupling, "taylor", batches=batches, loss=functional.cross_entropy)
    assert not frozen.requires_grad
    assert all(p.grad is None for p in parameters.values())
    for name, value in program.module.state_dict().items():
        assert torch.equal(before[name], value)


@pytest.mark.parametrize("aggregate", sorted(AGGREGATES))
def test_aggregations(setup, aggregate) -> None:
    _, program, coupling, _ = setup
    rows = np.stack([share(row.square().sum(1)) for row in filters(setup[0])])
    # sites are sorted by parameter: a, b, dw
    rows = rows[[0, 2, 1]]
    wanted = {"sum": rows.sum(0), "mean": rows.mean(0), "max": rows.max(0), "first": rows[0]}
    found = score(program, coupling, "l2", aggregate=aggregate, normalize="none")
    name = next(g.name for g in coupling.groups if g.width == 6)
    np.testing.assert_allclose(found[name], wanted[aggregate], rtol=1e-6)


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("none", [[1, 3, 4], [2, 2]]),
        ("sum", [[1 / 8, 3 / 8, 4 / 8], [1 / 2, 1 / 2]]),
        ("mean", [[3 / 8, 9 / 8, 12 / 8], [1, 1]]),
        ("max", [[1 / 4, 3 / 4, 1], [1, 1]]),
        ("gaussian", [[0, 2 / 1.247219, 3 / 1.247219], [(5 / 3) / 1.247219] * 2]),
        ("share", [[1 / 64, 15 / 64, 48 / 64], [3 / 4, 1 / 4]]),
    ],
)
def test_normalisations(setup, how, wanted) -> None:
    groups = dict(zip("ab", setup[2].groups, strict=False))
    energies = {"a": np.array([1.0, 3.0, 4.0]), "b": np.array([2.0, 2.0])}
    found = normalise_groups(energies, groups, how)
    layers = {"a": 1, "b": 1}
    if how == "share":
        layers = {name: producers(group) for name, group in groups.items()}
    for name, row in zip("ab", wanted, strict=True):
        np.testing.assert_allclose(found[name] / layers[name], row, rtol=1e-6, atol=1e-12)


def test_unknown_combinations(setup) -> None:
    _, program, coupling, _ = setup
    assert "share" in NORMALISATIONS
    with pytest.raises(HwpruneError, match="unknown aggregate 'median'"):
        score(program, coupling, aggregate="median")
    with pytest.raises(HwpruneError, match="unknown normalize 'log'"):
        score(program, coupling, normalize="log")
