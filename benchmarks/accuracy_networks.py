"""The networks of the accuracy benchmark: how each is built at any width, trained and fine-tuned.

In: a width factor and a seed. Out: an untrained module, 1x28x28 in, 10 logits out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from examples.fashion_mnist import SmallMobileNet, SmallResNet
from examples.fashion_networks import SmallVGG, SmallViT
from examples.seeded import seeded
from hwprune.recover import TrainConfig

STEP = 4  # channels: scaled widths are multiples of it
HEADS = 4


@dataclass(frozen=True)
class Network:
    """A network at any width, and how it is trained from scratch and fine-tuned after pruning."""

    name: str
    factory: Callable[[float], nn.Module]
    train: TrainConfig
    tune: TrainConfig
    head: str = "head"  # the last layer, which keeps its outputs

    def build(self, seed: int, factor: float = 1.0) -> nn.Module:
        """Untrained, every width times `factor`; the same weights for the same seed."""
        return seeded(lambda: self.factory(factor), seed)


def scaled(widths: tuple[int, ...], factor: float) -> tuple[int, ...]:
    """Every width times the factor, in multiples of STEP."""
    return tuple(max(STEP, STEP * round(width * factor / STEP)) for width in widths)


def resnet20(factor: float) -> nn.Module:
    """ResNet-20 (He et al., 2016)."""
    return SmallResNet(scaled((16, 32, 64), factor), blocks=3, stride=1)


def vgg(factor: float) -> nn.Module:
    """Six convolutions with batch norm and two linear layers."""
    return SmallVGG(scaled((32, 64, 128), factor))


def mobilenet(factor: float) -> nn.Module:
    """Six inverted residuals."""
    return SmallMobileNet(scaled((32, 64, 96), factor))


def vit(factor: float) -> nn.Module:
    """Four blocks of four heads; the channels of a head are scaled, not their number."""
    (head,), (hidden,) = scaled((32,), factor), scaled((256,), factor)
    return SmallViT(HEADS * head, HEADS, hidden)


def tiny(factor: float) -> nn.Module:
    """Two residual blocks, to see that everything runs."""
    return SmallResNet(scaled((32, 64), factor), blocks=1)


def _sgd(epochs: int, tune_epochs: int) -> tuple[TrainConfig, TrainConfig]:
    train = TrainConfig(epochs=epochs, lr=0.1, distill=0.0)
    return train, TrainConfig(epochs=tune_epochs, lr=0.03, distill=0.7)


def _adamw(epochs: int, tune_epochs: int) -> tuple[TrainConfig, TrainConfig]:
    common = {"optimizer": "adamw", "weight_decay": 0.05}
    train = TrainConfig(epochs=epochs, lr=1e-3, distill=0.0, **common)  # type: ignore[arg-type]
    tune = TrainConfig(epochs=tune_epochs, lr=5e-4, distill=0.7, **common)  # type: ignore[arg-type]
    return train, tune


FULL = (
    Network("resnet20", resnet20, *_sgd(20, 10)),
    Network("vgg", vgg, *_sgd(20, 10)),
    Network("mobilenet", mobilenet, *_sgd(20, 10)),
    Network("vit", vit, *_adamw(40, 10)),
)
QUICK = (Network("tiny", tiny, *_sgd(1, 1)),)
