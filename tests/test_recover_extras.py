"""What training can do beside plain steps: averages, bfloat16, callbacks, features."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import HwpruneError
from hwprune.recover import Callback, Step, TrainConfig, features, finetune, training_bar
from tests.small_net import small_net
from tests.test_recover_mistakes import batches
from tests.test_recover_train import make_net

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Remembers(Callback):
    """Keeps the weights after every step; its state is how many there were."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.weights, self.epochs, self.before = net, [], [], 0

    def after_step(self, step: Step) -> None:
        self.weights.append(self.net.state_dict()["0.weight"].clone())

    def after_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def state_dict(self):
        return {"count": self.before + len(self.weights)}

    def load_state_dict(self, state):
        self.before = state["count"]


def test_the_average_of_the_weights_is_the_result() -> None:
    net = make_net()
    start = net.state_dict()["0.weight"].clone()
    told = Remembers(net)
    finetune(net, batches(), 2, TrainConfig(epochs=3, lr=0.05, ema=0.8), callbacks=[told])
    wanted = start
    for count, weight in enumerate(told.weights, 1):
        decay = min(0.8, (1 + count) / (10 + count))
        wanted = decay * wanted + (1 - decay) * weight
    assert torch.allclose(net.state_dict()["0.weight"], wanted, atol=1e-6)
    assert not torch.allclose(wanted, told.weights[-1], atol=1e-4)
    assert told.epochs == [0, 1, 2]


def test_averages_and_callbacks_resume(tmp_path) -> None:
    config = TrainConfig(epochs=3, lr=0.05, ema=0.9)
    whole = make_net()
    finetune(whole, batches(), 2, config)

    class StopError(Exception):
        pass

    def stop(step: Step) -> None:
        if step.epoch == 2:
            raise StopError

    path, net = tmp_path / "net.pt", make_net()
    with pytest.raises(StopError):
        finetune(net, batches(), 2, config, checkpoint=path, progress=stop,
                 callbacks=[Remembers(net)])  # fmt: skip
    resumed = make_net()
    told = Remembers(resumed)
    finetune(resumed, batches(), 2, config, checkpoint=path, callbacks=[told])
    assert told.before == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_bfloat16_trains_like_float32() -> None:
    exact, rounded = make_net(), make_net()
    config = TrainConfig(epochs=6, lr=0.05)
    losses = finetune(exact, batches(), 2, config).losses
    lower = TrainConfig(epochs=6, lr=0.05, precision="bfloat16")
    near = finetune(rounded, batches(), 2, lower).losses
    assert near != losses
    assert near == pytest.approx(losses, rel=0.05)
    assert all(p.dtype == torch.float32 for p in rounded.parameters())


@pytest.fixture(scope="module")
def pruned():
    return hwprune.prune(small_net(), (X,), macs="50%")


def test_features_are_those_of_the_channels_that_stay(pruned) -> None:
    pair = features(pruned.dense, pruned.program, pruned.coupling, pruned.plan, count=2)
    images = torch.randn(4, 3, 16, 16)
    outputs, found = pair.student(images)
    _, wanted = pair.teacher(images)
    assert torch.allclose(outputs[0], pruned.module(images))
    assert len(found) == len(wanted) == len(pair.nodes) == 2
    groups = ("left.0", "stem.0")  # after the first relu6, and the sum at the end
    for ours, theirs, kept, group in zip(found, wanted, pair.kept, groups, strict=True):
        assert kept[1].tolist() == list(pruned.plan.kept[group])
        assert ours.shape == theirs[:, kept[1]].shape
    assert float(pair.error([w[:, k[1]] for w, k in zip(wanted, pair.kept, strict=True)],
                            wanted)) == 0.0  # fmt: skip
    assert float(pair.error(found, wanted)) > 0.01


CLOSE = TrainConfig(epochs=40, lr=0.05, eval_mode=True, feature_weight=3.0)


def test_distilling_features_brings_them_nearer(pruned) -> None:
    program = copy.deepcopy(pruned.program)
    pair = features(pruned.dense, program, pruned.coupling, pruned.plan)
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(3))

    def error() -> float:
        with torch.no_grad():
            return float(pair.error(pair.student(images)[1], pair.teacher(images)[1]))

    before = error()
    finetune(program.module, [images], 1, CLOSE, features=pair)
    assert error() < 0.5 * before
    with pytest.raises(HwpruneError, match="features: are of another network"):
        finetune(small_net(), [images], 1, features=pair)
    with pytest.raises(HwpruneError, match="0 features"):
        features(pruned.dense, program, pruned.coupling, pruned.plan, count=0)


def test_a_bar_shows_the_loss(capsys) -> None:
    from rich.console import Console

    with training_bar("recover", 2, 2, Console(force_terminal=True, width=120)) as report:
        finetune(make_net(), batches(), 2, TrainConfig(epochs=2), progress=report)
    shown = capsys.readouterr().out
    assert "4/4" in shown
    assert "loss" in shown
