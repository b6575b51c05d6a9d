"""Ways of pruning compared: every way trains as long, meets the budget, and rows resume."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from benchmarks import accuracy_train, common, ways
from benchmarks.accuracy_networks import QUICK, Network, tiny
from benchmarks.accuracy_run import Bench
from examples.fashion_mnist import Batches
from hwprune.recover import TrainConfig
from tests.pictures import pictures

KEY = {"model": "tiny", "seed": 0, "macs_asked": 0.5}
EPOCHS = 2
STEPS = 21  # in an epoch: a growing penalty needs 20


halves = partial(pictures, classes=2, step=14, height=14)


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

    subject, dense = bench.dense(network, 0)
    monkeypatch.setattr(Batches, "__call__", count)
    row = ways.row(bench, network, KEY | {"way": way})
    assert seen == EPOCHS * STEPS
    whole = subject.macs(subject.program)
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
