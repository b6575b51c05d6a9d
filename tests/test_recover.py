"""Recovery without labels: batch-norm statistics, least-squares reconstruction, fidelity."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hwprune.capture import capture
from hwprune.errors import ModelError
from hwprune.recover import fidelity, reconstruct, reestimate_norms
from hwprune.recover.layers import layers_of, outputs_at, patches_at, positions
from hwprune.recover.solve import Equations, solve
from hwprune.recover.sweep import divided


class Net(nn.Module):
    """Two convolutions with batch norm (the second strided and grouped), a residual, a head."""

    def __init__(self, width: int = 12, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 8, 3, stride=2, padding=1, groups=groups)
        self.conv3 = nn.Conv2d(8, 8, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.bn1(self.conv1(x)))
        y = y + self.bn3(self.conv3(torch.relu(y)))
        return self.head(y.mean((2, 3)))


def make_net(groups: int = 1) -> Net:
    torch.manual_seed(0)
    net = Net(groups=groups).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return net


def batches(count: int = 6, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 10, 10, generator=generator) for _ in range(count)]


def remove(net: Net, keep: list[int]) -> tuple[Net, dict]:
    """Keep these outputs of conv1; also the kept indices per parameter."""
    rows = torch.tensor(keep)
    small = copy.deepcopy(net)
    small.conv1.weight = nn.Parameter(net.conv1.weight.detach()[rows])
    small.conv2.weight = nn.Parameter(net.conv2.weight.detach()[:, rows])
    kept = {"conv1.weight": {0: np.array(keep)}, "conv2.weight": {1: np.array(keep)}}
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(net.bn1, name).detach()[rows]
        is_buffer = name.startswith("running")
        setattr(small.bn1, name, value if is_buffer else nn.Parameter(value))
        kept[f"bn1.{name}"] = {0: np.array(keep)}
    return small, kept


@pytest.mark.parametrize("norms", ["keep", "match"])
def test_redundant_channels_are_recovered_exactly(norms):
    net = make_net()
    net.conv2.padding = (0, 0)  # at a padded border the batch norm's offset would be missing
    with torch.no_grad():  # channels 8.. are linear combinations of the others, before conv2
        mix = torch.randn(4, 8)
        net.conv1.weight[8:] = torch.einsum("oi,icyx->ocyx", mix, net.conv1.weight[:8])
    small, kept = remove(net, list(range(8)))
    x = batches()
    dense, pruned = capture(net, (x[0],)), capture(small, (x[0],))
    unseen = torch.randn(16, 3, 10, 10)
    reference = dense.module(unseen)
    assert (pruned.module(unseen) - reference).abs().max() > 0.1 * reference.abs().max()
    before = {k: v.clone() for k, v in pruned.module.state_dict().items()}
    result = reconstruct(dense, pruned, kept, x, norms=norms)
    error = (result.program.module(unseen) - reference).abs().max()
    assert error < 1e-4 * reference.abs().max()
    conv2 = next(e for e in result.layers if e.name == "conv2d_1")
    assert conv2.before > 0.05
    assert conv2.after < 1e-8
    assert all(torch.equal(v, before[k]) for k, v in pruned.module.state_dict().items())


def test_reconstruction_lowers_every_layers_error_and_the_networks():
    net = make_net()
    small, kept = remove(net, [0, 2, 3, 5, 7, 8, 11])
    x = batches()
    dense, pruned = capture(net, (x[0],)), capture(small, (x[0],))
    done: list[tuple[int, int]] = []
    result = reconstruct(dense, pruned, kept, x, progress=lambda i, n: done.append((i, n)))
    assert done == [(i, 4) for i in (1, 2, 3, 4)]
    assert all(e.after <= e.before for e in result.layers)
    unseen = torch.randn(32, 3, 10, 10, generator=torch.Generator().manual_seed(9))
    reference = dense.module(unseen)
    old = (pruned.module(unseen) - reference).norm()
    assert (result.program.module(unseen) - reference).norm() < 0.8 * old


def test_an_unpruned_network_is_left_alone():
    net = make_net(groups=4)
    x = batches(5)
    dense = capture(net, (x[0],))
    result = reconstruct(dense, capture(net, (x[0],)), {}, x)
    unseen = torch.randn(4, 3, 10, 10)
    torch.testing.assert_close(result.program.module(unseen), dense.module(unseen))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_patches_times_weights_are_the_outputs(groups):
    net = make_net(groups)
    program = capture(net, (torch.randn(2, 3, 9, 11),))
    layers = {layer.weight: layer for layer in layers_of(program.module.graph)}
    assert list(layers) == ["conv1.weight", "conv2.weight", "conv3.weight", "head.weight"]
    assert layers["conv1.weight"].absorb == "bn1.running_mean"
    assert layers["conv3.weight"].shortcut is layers["conv2.weight"].node
    layer, value = layers["conv2.weight"], torch.randn(2, 12, 9, 11)
    output = net.conv2(value)
    at = positions(layer, tuple(output.shape), 20, seed=3)
    assert at.shape == (20, 3)
    patches = patches_at(layer, value, net.conv2.weight, at)
    weight = net.conv2.weight.reshape(groups, 8 // groups, -1)
    got = torch.einsum("gsk,gok->sgo", patches, weight).reshape(20, 8) + net.conv2.bias
    torch.testing.assert_close(got, outputs_at(layer, output, at))


def test_shared_weights_are_left_out():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once, self.twice = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.twice(torch.relu(self.twice(self.once(x))))

    program = capture(Shared().eval(), (torch.randn(2, 4),))
    assert [layer.weight for layer in layers_of(program.module.graph)] == ["once.weight"]


def test_ridge_solution_against_numpy():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 50, 4, generator=generator, dtype=torch.float64)
    current = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    equations = Equations.of(x[:, :20], y[:, :20], False) + Equations.of(
        x[:, 20:], y[:, 20:], False
    )
    got = solve(equations, current, 0.01)
    for g in range(2):
        gram = x[g].T @ x[g]
        strength = 0.01 * gram.diagonal().mean()
        system = gram + strength * torch.eye(3, dtype=torch.float64)
        want = np.linalg.solve(system, x[g].T @ y[g] + strength * current[g])
        np.testing.assert_allclose(got[g], want, rtol=1e-9)
    residual = (y - x @ got).square().sum()
    variance = (y - y.mean(1, keepdim=True)).square().sum()
    assert equations.error(got) == pytest.approx(float(residual / variance))


def test_reestimated_norms_are_the_training_mode_statistics():
    net = make_net()
    x = batches(4)
    program = capture(net, (x[0],))
    fresh = reestimate_norms(program, x)
    trained = copy.deepcopy(net).train()
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    trained(torch.cat(x))
    state = fresh.module.state_dict()
    for name, buffer in trained.named_buffers():
        if "running" in name:
            # training normalises by the biased variance: later norms differ by 1 / 800 values
            rtol, atol = (1e-5, 1e-6) if name.startswith("bn1") else (2e-3, 1e-4)
            torch.testing.assert_close(state[name], buffer, rtol=rtol, atol=atol)
    assert not torch.equal(state["bn1.running_mean"], net.bn1.running_mean)
    assert torch.equal(program.module.state_dict()["bn1.running_mean"], net.bn1.running_mean)


def test_matched_norms_restore_the_dense_moments():
    net = make_net()
    keep = [1, 4, 6, 9]
    small, kept = remove(net, keep)
    with torch.no_grad():
        small.conv1.weight.mul_(3.0)
    x = batches(4)
    dense, pruned = capture(net, (x[0],)), capture(small, (x[0],))
    fresh = reestimate_norms(pruned, x, dense=dense, kept=kept)
    images = torch.cat(x)
    wanted = net.bn1(net.conv1(images))[:, keep]
    small.bn1.load_state_dict(
        {k[4:]: v for k, v in fresh.module.state_dict().items() if k.startswith("bn1.")}
    )
    torch.testing.assert_close(small.bn1(small.conv1(images)), wanted, rtol=1e-3, atol=1e-3)


def test_batches_that_do_not_fit_are_refused():
    program = capture(make_net(), (torch.randn(2, 3, 10, 10),))
    with pytest.raises(ModelError, match=r"\(3, 12, 12\)"):
        reestimate_norms(program, [torch.randn(2, 3, 12, 12)])
    with pytest.raises(ModelError, match="no images"):
        reestimate_norms(program, [])


def test_fidelity():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    b = np.array([[2.0, 0.0], [3.0, 0.0]])
    got = fidelity(lambda x: (a[x],), lambda x: b[x], torch.arange(2))
    assert got == {"top1_agreement": 0.5, "cosine": pytest.approx(0.5)}
    with pytest.raises(ValueError, match="no images"):
        fidelity(lambda x: x, lambda x: x, [])


def test_few_images_are_divided_so_that_a_fifth_judges():
    net = make_net()
    program = capture(net, (torch.randn(2, 3, 10, 10),))
    x = torch.randn(48, 3, 10, 10)
    parts = divided([(part,) for part in x.split(16)], program)
    assert [len(part) for (part,) in parts] == [4] * 12
    assert torch.equal(torch.cat([part for (part,) in parts]), x)
    assert [len(part) for (part,) in divided([(x[:3],)], program)] == [1, 1, 1]
    many = [(part,) for part in x.split(4)]
    assert divided(many, program) is many
    alone = replace(program, dynamic_batch=False)
    single = [(part,) for part in x[:3].split(1)]
    assert divided(single, alone) is single
    unlike = [(x, x[:2])]
    assert divided(unlike, program) is unlike


def test_how_few_images_are_batched_does_not_matter():
    net = make_net()
    small, kept = remove(net, [0, 2, 3, 5, 7, 8, 11])
    x = torch.randn(40, 3, 10, 10)
    dense, pruned = capture(net, (x[:2],)), capture(small, (x[:2],))
    errors = [
        [(e.before, e.after, e.ridge) for e in reconstruct(dense, pruned, kept, x.split(n)).layers]
        for n in (8, 16, 40)
    ]
    assert errors[0] == errors[1] == errors[2]
    assert len({ridge for _, _, ridge in errors[0]}) > 1  # chosen, not the largest for all
