import numpy as np
import pytest
import torch
from torch import nn

from hwprune.capture import capture
from hwprune.couple import couple
from hwprune.errors import HwpruneError
from hwprune.score import CRITERIA, score


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 4 * 4, 5),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight[2] = 0
        model[1].weight[2] = 0
        model[3].weight[:, 2] = 0
    program = capture(model, (torch.randn(2, 3, 8, 8),))
    return program, couple(program)


def batches():
    return [((torch.randn(4, 3, 8, 8),), torch.tensor([0, 1, 2, 3]))]


@pytest.mark.parametrize("importance", sorted(CRITERIA))
def test_scores_every_unit(network, importance) -> None:
    program, coupling = network
    found = score(
        program, coupling, importance, batches=batches(), loss=nn.functional.cross_entropy
    )
    for group in coupling.groups:
        assert found[group.name].shape == (group.width,)
        assert np.isfinite(found[group.name]).all()
        assert (found[group.name] >= 0).all()


@pytest.mark.parametrize("importance", ["l1", "l2", "bn_scale", "taylor"])
def test_a_silent_channel_is_worth_least(network, importance) -> None:
    program, coupling = network
    found = score(
        program, coupling, importance, batches=batches(), loss=nn.functional.cross_entropy
    )
    first = next(g for g in coupling.groups if g.width == 8)
    assert found[first.name].argmin() == 2


def test_random_follows_the_seed(network) -> None:
    a, b, c = (score(*network, "random", seed=s) for s in (1, 1, 2))
    name = next(iter(a))
    assert (a[name] == b[name]).all()
    assert (a[name] != c[name]).any()


def test_says_what_is_missing(network) -> None:
    with pytest.raises(HwpruneError, match="unknown importance"):
        score(*network, "magic")
    with pytest.raises(HwpruneError, match="batches"):
        score(*network, "taylor")
