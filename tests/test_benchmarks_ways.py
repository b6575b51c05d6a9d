"""Ways of pruning compared: every way trains as long, meets the budget, and rows resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import accuracy_train, common, ways
from benchmarks.accuracy_networks import QUICK, Network, tiny
from benchmarks.accuracy_run import Bench
from examples.fashion_mnist import Batches, Split
from hwprune.recover import TrainConfig

KEY = {"model": "tiny", "seed": 0, "macs_asked": 0.5}
EPOCHS = 2
STEPS = 21  # in an epoch: a growing penalty needs 20


def halves(count: int, seed: int) -> Split:
    """Images whose upper or lower half is bright, which tells their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = 0.3 * torch.randn(count, 1, 28, 28, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 14 * label : 14 * label + 14] += 2.0
    return Split(images, labels)


@pytest.fixture(scope="module")
def network() -> Network:
    train = TrainConfig(epochs=1, lr=0.05, distill=0.0)
    tune = TrainConfig(epochs=EPOCHS, lr=0.02, distill=0.7)
    return replace(QUICK[0], factory=lambda factor: tiny(0.5 * factor), train=train, tune=tune)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("cache")
    return Bench(halves(STEPS * accuracy_train.BATCH, 0), halves(200, 1), 64, folder)


@pytest.mark.parametrize("way", ways.WAYS)
def test_every_way_meets_the_budget_and_trains_as_long(bench, network, monkeypatch, way) -> None:
    seen = 0
    draw = Batches.__call__

    def count(self, epoch):
        nonlocal seen
        for batch in draw(self, epoch):
            seen += 1
            yield batch

    course, dense = ways._course(bench, network, KEY)
    monkeypatch.setattr(Batches, "__call__", count)
    row = ways.row(course, way, dense)
    assert seen == EPOCHS * STEPS
    whole = course.subject.macs(course.subject.program)
    assert 0.25 * whole < row["macs"] <= 0.5 * whole
    assert row["latency_us"] > 0
    assert row["latency_source"] == "device"
    assert row["acc"] > 80  # the halves are easily told apart
    assert (row["acc_removed"] is None) == (way == "two steps")
    assert dense == row["acc_dense"]


def test_rows_resume_and_failures_are_said_and_tried_again(bench, tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.json"
    asked = [KEY | {"way": "at once"}, KEY | {"way": "growing"}]
    small = Bench(bench.train_images.take(256), bench.test_images, 64, tmp_path)
    first = ways.run(small, asked, out)
    assert "acc" in first[0]
    assert "steps (at least 20)" in first[1]["reason"]
    monkeypatch.setitem(ways.WAYS, "at once", lambda course: pytest.fail("made again"))
    again = ways.run(small, asked, out)
    assert again == first == common.rows_of(out)
    ways.show(again)
    assert "at least 20" in capsys.readouterr().out
