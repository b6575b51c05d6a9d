"""Training on bad input: a message that says where; the last finished epoch's weights stay."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hwprune.errors import HwpruneError, PlanError
from hwprune.recover import TrainConfig, finetune
from tests.test_recover_train import data, make_net

CONFIG = TrainConfig(epochs=2, lr=0.01)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = data()
    return [(images[:48], labels[:48]), (images[48:], labels[48:])]


@pytest.mark.parametrize("label", [3, -1, 250])
def test_labels_out_of_range_lose_nothing(tmp_path, label) -> None:
    net, after = make_net(), {}

    def loader(epoch):
        if epoch == 0:
            return batches()
        after.update({k: v.clone() for k, v in net.state_dict().items()})
        images, labels = batches()[1]
        return [batches()[0], (images, labels.clone().index_fill_(0, torch.tensor([5]), label))]

    checkpoint = tmp_path / "net.pt"
    with pytest.raises(
        HwpruneError,
        match=rf"labels, step 1 of epoch 1: label {label} is out of range, the model has 3 classes",
    ):
        finetune(net, loader, 2, CONFIG, checkpoint=checkpoint)
    assert all(torch.equal(v, after[k]) for k, v in net.state_dict().items())
    saved = torch.load(checkpoint, weights_only=True)
    assert len(saved["losses"]) == 1
    assert all(torch.equal(v, after[k]) for k, v in saved["module"].items())
    assert not net.training


def test_ignored_labels_and_probabilities_are_fine() -> None:
    images, labels = data()
    ignored = labels.clone()
    ignored[:4] = -100
    assert not finetune(make_net(), [(images, ignored)], 1, CONFIG).stopped
    shares = nn.functional.one_hot(labels, 3).float()
    assert not finetune(make_net(), [(images, shares)], 1, CONFIG).stopped
    for bad in (labels[:5], shares[:, :2]):
        with pytest.raises(HwpruneError, match="labels, step 0 of epoch 0"):
            finetune(make_net(), [(images, bad)], 1, CONFIG)


def test_loaders_that_end_too_early() -> None:
    with pytest.raises(HwpruneError, match="epoch 1: the loader is exhausted"):
        finetune(make_net(), iter(batches()), 2, CONFIG)
    with pytest.raises(HwpruneError, match=r"epoch 0: the loader gave 2 batches, .* is 3"):
        finetune(make_net(), batches(), 3, CONFIG)
    with pytest.raises(HwpruneError, match="a batch holds dict"):
        finetune(make_net(), [{"pixels": 1}], 1, CONFIG)


class Dying(Dataset):
    """A data set whose worker dies, or fails, at its eleventh item."""

    def __init__(self, dies: bool) -> None:
        self.dies = dies

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 10:
            if self.dies:
                os._exit(3)
            raise OSError("unreadable picture")
        return torch.ones(1, 6, 6), index % 3


@pytest.mark.parametrize(("dies", "match"), [(True, "worker"), (False, "unreadable picture")])
def test_workers_that_die_or_fail(dies, match) -> None:
    loader = DataLoader(Dying(dies), batch_size=8, num_workers=1)
    with pytest.raises(HwpruneError, match=f"epoch 0: the loader failed: .*{match}"):
        finetune(make_net(), loader, 4, CONFIG)


def test_a_teacher_with_other_outputs() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    with pytest.raises(HwpruneError, match=r"teacher, step 0 .*\(48, 5\), the student \(48, 3\)"):
        finetune(make_net(), batches(), 2, CONFIG, teacher=teacher)
    with pytest.raises(HwpruneError, match="not one tensor of logits"):
        finetune(make_net(), batches(), 2, CONFIG, teacher=nn.Flatten(0))


def test_a_checkpoint_of_another_plan(tmp_path) -> None:
    path = tmp_path / "net.pt"
    finetune(make_net(), batches(), 2, CONFIG, checkpoint=path)
    torch.manual_seed(0)
    narrower = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2)]
    with pytest.raises(PlanError, match=r"of another plan: 0.bias has shape \(4,\) there, \(3,\)"):
        finetune(nn.Sequential(*narrower, nn.Linear(48, 3)), batches(), 2, CONFIG, checkpoint=path)
    other = nn.Sequential(*make_net(), nn.Linear(3, 3))
    with pytest.raises(PlanError, match="of another network: only the network has"):
        finetune(other, batches(), 2, CONFIG, checkpoint=path)
    torch.save({"config": {}}, path)
    with pytest.raises(HwpruneError, match="holds no training"):
        finetune(make_net(), batches(), 2, CONFIG, checkpoint=path)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0}, {"epochs": 1.5}, {"lr": 0.0}, {"lr": math.nan}, {"momentum": 1.0},
        {"distill": 1.5}, {"temperature": 0.0}, {"warmup_fraction": 2.0}, {"clip_norm": -1.0},
        {"ema": 1.0}, {"label_smoothing": -0.1}, {"precision": "float8"}, {"weight_decay": -1.0},
    ],
)  # fmt: skip
def test_impossible_schedules(change) -> None:
    (name,) = change
    with pytest.raises(HwpruneError, match=f"^{name}: .* is impossible"):
        finetune(make_net(), batches(), 2, TrainConfig(**change))


def test_no_steps_and_nothing_to_train() -> None:
    with pytest.raises(HwpruneError, match="steps_per_epoch"):
        finetune(make_net(), batches(), 0, CONFIG)
    with pytest.raises(HwpruneError, match="nothing to train"):
        finetune(make_net().requires_grad_(False), batches(), 2, CONFIG)
