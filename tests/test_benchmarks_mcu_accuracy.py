"""The accuracy benchmark of int8: a row says what was measured on the test images."""

from __future__ import annotations

import json
from dataclasses import asdict

import torch
from torch import nn

from benchmarks import mcu_accuracy
from benchmarks.mcu_accuracy_row import METHODS, Subject, read_row, row, rows_of
from examples.fashion_mnist import Split


def test_a_row_is_of_the_test_images(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(400, 1, 6, 6, generator=generator)
    labels = (images.sum((1, 2, 3)) > 0).long()
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.ones(8, 36) * torch.tensor([[1.0], [-1.0]] * 4))
        net[1].bias.zero_()
        net[3].weight.copy_(torch.tensor([[-1.0, 1.0] * 4, [1.0, -1.0] * 4]))
        net[3].bias.zero_()
    test = Split(images[200:], torch.where(torch.arange(200) < 20, 1 - labels[200:], labels[200:]))
    batches = [(images[i : i + 20], labels[i : i + 20]) for i in range(0, 100, 20)]
    subject = Subject("toy", "dense", net, net, images[:200], test, lambda _: batches, 5)
    done = row(subject, tmp_path, emulate=40)
    assert (done.test_images, done.macs, done.params) == (200, 36 * 8 + 16, 36 * 8 + 8 + 16 + 2)
    assert done.float_accuracy == 90.0  # every tenth label is wrong
    assert set(done.int8_accuracy) == set(METHODS)
    assert min(done.int8_accuracy.values()) > 86
    assert done.lost == round(90.0 - done.int8_accuracy["mse"], 2)
    assert done.agreement > 95
    assert done.on_board is not None
    assert (done.on_board.images, done.on_board.exact) == (40, 40)
    assert 40 <= done.on_board.accuracy <= 60  # the first twenty labels are wrong
    assert done.tuned_accuracy is not None
    assert done.tuned_accuracy > 86
    assert done.lost_to_dense == round(50.0 - done.on_board.accuracy, 2)
    assert done.on_board.latency_ms > 0
    assert done.on_board.latency_source.startswith("model")
    assert read_row(json.dumps(asdict(done))) == done
    assert [f.name for f in tmp_path.iterdir()] == ["toy-dense-tuned.pt"]
    mcu_accuracy.show([done])


def test_rows_are_made_once_and_compared_with_the_dense_network(tmp_path):
    torch.manual_seed(0)
    wide, narrow = (
        nn.Sequential(nn.Flatten(), nn.Linear(36, n), nn.ReLU(), nn.Linear(n, 2)).eval()
        for n in (32, 8)
    )
    images, labels = torch.randn(30, 1, 6, 6), torch.arange(30) % 2
    subjects = [
        Subject("toy", name, net, wide, images, Split(images, labels), lambda _: [], 0)
        for name, net in (("dense", wide), ("half-latency", narrow))
    ]
    dense, half = rows_of(subjects, tmp_path, "seed0", emulate=10)
    assert dense.latency_share == 1.0
    assert half.on_board is not None
    assert dense.on_board is not None
    share = half.on_board.latency_ms / dense.on_board.latency_ms
    assert half.latency_share == round(share, 4) < 0.7
    kept = tmp_path / "toy-half-latency-seed0-30-10.json"
    kept.write_text(kept.read_text().replace('"model": "toy"', '"model": "kept"'))
    assert [r.model for r in rows_of(subjects, tmp_path, "seed0", emulate=10)] == ["toy", "kept"]
