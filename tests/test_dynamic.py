"""Pruning during training, on real pictures: regrowth, and removal that costs nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hwprune
from examples import fashion_mnist
from hwprune.capture import capture
from hwprune.errors import BudgetError, HwpruneError, PlanError
from hwprune.recover import Callback, TrainConfig, finetune
from hwprune.ways.dynamic import change
from tests.small_net import small_net

BATCH = 64


@pytest.fixture(scope="module")
def pictures() -> fashion_mnist.Split:
    if not fashion_mnist.available():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    return fashion_mnist.load("train").take(512)


def network() -> nn.Module:
    torch.manual_seed(0)
    return fashion_mnist.SmallResNet((24,), blocks=1)


def train(model: nn.Module, data: fashion_mnist.Split, steps: int, pruner=None) -> list[float]:
    """A loop as users write it; a step of the pruner after each of the optimiser."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    losses = []
    for step in range(steps):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(data)
        loss = nn.functional.cross_entropy(model(data.images[rows]), data.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if pruner is not None:
            pruner.step()
    model.eval()
    return losses


@pytest.fixture(scope="module")
def trained(pictures) -> tuple[nn.Module, Tensor, fashion_mnist.Split]:
    model = network()
    train(model, pictures, 24)
    return model, pictures.images[:16], pictures


def copy_of(model: nn.Module) -> nn.Module:
    twin = network()
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def test_growing_regularisation_makes_removal_free(trained) -> None:
    dense, x, data = trained
    at_once = hwprune.prune(dense, (x,), macs="60%")
    model = copy_of(dense)
    pruner = hwprune.GrowingRegularizer(model, (x,), steps=60, macs="60%")
    losses = train(model, data, 60, pruner)
    assert np.mean(losses[-8:]) < np.mean(losses[:8])
    result = pruner.finish()
    removal = result.report["removal"]
    assert result.report["pruned"]["macs"] <= 0.6 * result.report["dense"]["macs"]
    assert any(mask.any() for mask in pruner.removed().values())
    assert removal["left"] < 1e-4
    assert removal["max_rel_change"] < 1e-4 < 0.05 < change(at_once.dense, at_once.program)
    with torch.no_grad():  # also on pictures that were no example
        found, wanted = result.module(data.images[64:128]), model(data.images[64:128])
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))
    assert result.certificate.passed


def test_a_growing_penalty_shrinks_again_where_a_unit_is_to_stay(trained) -> None:
    dense, x, _ = trained
    pruner = hwprune.GrowingRegularizer(copy_of(dense), (x,), steps=100, macs="60%")
    name = next(g for g, mask in pruner.removed().items() if mask.any())
    unit = int(np.flatnonzero(pruner.removed()[name])[0])
    other = int(np.flatnonzero(~pruner.removed()[name])[0])
    pruner.step()
    assert pruner.penalty[name][unit] > 0
    kept = sorted({*pruner.plan.kept[name], unit} - {other})
    swapped = {**pruner.plan.kept, name: tuple(kept)}
    pruner.plan = type(pruner.plan)(pruner.plan.fingerprint, swapped, forms=pruner.plan.forms)
    pruner.step()
    assert pruner.penalty[name][unit] == 0
    assert pruner.penalty[name][other] > 0
    twin = hwprune.GrowingRegularizer(copy_of(dense), (x,), steps=100, macs="60%")
    twin.load_state_dict(pruner.state_dict())
    assert twin.plan.kept == pruner.plan.kept
    assert twin.count == 2
    assert np.array_equal(twin.penalty[name], pruner.penalty[name])


def test_soft_pruning_zeroes_filters_and_lets_them_grow_again(trained) -> None:
    dense, x, data = trained
    model = copy_of(dense)
    pruner = hwprune.SoftPruner(model, (x,), macs="60%", every=8)
    train(model, data, 32, pruner)
    for name, mask in pruner.removed().items():
        for site, tensor in pruner._slices(pruner.prepared.coupling.group(name)):
            if site.dim == 0 and tensor.ndim > 1:
                assert not tensor[torch.from_numpy(mask)].any()
                assert tensor[torch.from_numpy(~mask)].any()
    chosen = {name: mask.copy() for name, mask in pruner.removed().items()}
    name = next(g for g, mask in chosen.items() if mask.any())
    train(model, data, 4)  # zeroed filters still learn
    weight = model.get_parameter(f"{name}.weight")
    assert weight[torch.from_numpy(chosen[name])].any()
    with torch.no_grad():  # one of them matters after all
        weight[int(np.flatnonzero(chosen[name])[0])] += 10 * weight.abs().max()
    result = pruner.finish()
    assert pruner.regrown >= 1
    assert result.report["removal"]["regrown"] == pruner.regrown
    assert int(np.flatnonzero(chosen[name])[0]) in result.plan.kept[name]
    assert result.report["pruned"]["macs"] <= 0.6 * result.report["dense"]["macs"]
    result.apply_to(model)
    assert torch.allclose(model(x), result.module(x), atol=1e-4)


def test_layers_are_reconstructed_after_what_soft_pruning_zeroed_last(trained) -> None:
    dense, x, data = trained
    model = copy_of(dense)
    pruner = hwprune.SoftPruner(model, (x,), macs="50%")
    before = model(x)
    pruner.step()
    state, weights = pruner.state_dict(), {n: t.clone() for n, t in model.state_dict().items()}
    assert not torch.allclose(model(x), before, atol=1e-2)
    result = pruner.finish(recover="auto", calibrate=data.images[64:128])
    assert torch.allclose(result.dense.module(x), before, atol=1e-4)
    held = data.images[128:256]
    wanted, plain = dense(held), hwprune.prune(dense, (x,), plan=result.plan).module(held)
    assert (result.module(held) - wanted).norm() < 0.5 * (plain - wanted).norm()
    twin = copy_of(dense)
    twin.load_state_dict(weights)
    resumed = hwprune.SoftPruner(twin, (x,), macs="50%")
    resumed.load_state_dict(state)
    again = resumed.finish(recover="auto", calibrate=data.images[64:128])
    assert again.plan.kept == result.plan.kept
    torch.testing.assert_close(again.module(x), result.module(x))


def test_callbacks_of_the_training_loop_on_a_captured_program() -> None:
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    batches = [(images[:16], torch.arange(16) % 10), (images[16:], torch.arange(16) % 10)]
    program = capture(small_net(), (images[:1],))
    modes: list[bool] = []

    class Watching(Callback):
        def after_epoch(self, epoch: int) -> None:
            modes.append(program.module.training)

    pruner = hwprune.SoftPruner(program, macs="60%")
    told = [pruner, Watching()]
    finetune(program.module, batches, 2, TrainConfig(epochs=3, lr=0.01), callbacks=told)
    assert pruner.module is program.module
    assert pruner.count == 3
    assert modes == [True, True, True]  # choosing units does not end training
    result = pruner.finish()
    assert result.certificate.passed
    assert result.report["pruned"]["macs"] <= 0.6 * result.report["dense"]["macs"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, BudgetError, "no budget"),
        ({"macs": "50%", "every": 0}, HwpruneError, "every"),
        ({"macs": "0.1%"}, BudgetError, "smallest reachable"),
        ({"macs": "50%", "attention": "both"}, HwpruneError, "one form"),
    ],
)
def test_bad_requests(options, error, match) -> None:
    with pytest.raises(error, match=match):
        hwprune.SoftPruner(small_net(), (torch.zeros(1, 3, 16, 16),), **options)


def test_too_few_steps_and_states_of_others() -> None:
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(HwpruneError, match="at least 20"):
        hwprune.GrowingRegularizer(small_net(), (x,), steps=3, macs="50%")
    pruner = hwprune.SoftPruner(small_net(), (x,), macs="50%")
    with pytest.raises(HwpruneError, match="not the state of a pruner"):
        pruner.load_state_dict({})
    other = hwprune.SoftPruner(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)),
                               (torch.zeros(1, 8),), macs="50%")  # fmt: skip
    with pytest.raises(PlanError, match="made for another model"):
        pruner.load_state_dict(other.state_dict())
