"""What int8 costs in accuracy: Fashion-MNIST, trained, pruned by MACs, quantized, run as integers.

    python -m benchmarks.mcu_accuracy [--quick] [--out FILE] [--cache DIR] [--model NAME]

Accuracies of int8 networks are those of the integer reference, which computes bit for bit what a
microcontroller does. Everything slow is kept under --cache and resumed from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import torch
from benchmarks.fashion_mnist import train
from examples import fashion_mnist, tiny
from examples.fashion_mnist import Batches
from hwprune.recover import TrainConfig

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "mcu_accuracy"


@dataclass(frozen=True)
class Setting:
    """How one network is trained, pruned and recovered."""

    name: str
    factory: Callable[[int], nn.Module]
    epochs: int
    recover_epochs: int
    train_images: int
    test_images: int = 2_000


FULL = (
    Setting("resnet8", tiny.fashion_resnet8, 2, 1, 60_000),
    Setting("ds_cnn", tiny.fashion_ds_cnn, 2, 1, 36_000),
)


def train_dense(setting: Setting, cache: Path, seed: int) -> nn.Module:
    """The dense network, trained or read."""
    data = fashion_mnist.load("train").take(setting.train_images)
    dense: Any = setting.factory(seed)
    dense.to(memory_format=torch.channels_last)  # trains faster
    config = TrainConfig(epochs=setting.epochs, lr=0.1, distill=0.0, seed=seed)
    checkpoint = cache / f"{setting.name}-seed{seed}-dense-{setting.epochs}.pt"
    cache.mkdir(parents=True, exist_ok=True)
    train(dense, Batches(data, 128, seed=seed), config, checkpoint, f"{setting.name}: train")
    dense.to(memory_format=torch.contiguous_format)
    return dense
