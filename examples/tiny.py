"""The four networks of MLPerf Tiny in their reference shapes, and two of them for Fashion-MNIST.

Widths, kernels and strides are those of the reference models (Banbury et al., MLPerf Tiny
Benchmark, 2021); dropout and the final softmax, which change no logits' order, are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.seeded import seeded

# What goes in, by the name of the function that makes the network.
SHAPES: dict[str, tuple[int, ...]] = {
    "resnet8": (1, 3, 32, 32),
    "ds_cnn": (1, 1, 49, 10),
    "mobilenet": (1, 3, 96, 96),
    "autoencoder": (1, 640),
    "fashion_resnet8": (1, 1, 28, 28),
    "fashion_ds_cnn": (1, 1, 28, 28),
}


def _conv(
    width_in: int, width: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(width)]


class _Residual(nn.Module):
    """Two 3x3 convolutions beside the identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(width_in, width, 3, stride), nn.ReLU(), *_conv(width, width)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Conv2d(width_in, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet8(nn.Module):
    """Image classification: a stem and three residual blocks of 16, 32 and 64 channels."""

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(channels, 16), nn.ReLU())
        self.blocks = nn.Sequential(
            _Residual(16, 16, 1), _Residual(16, 32, 2), _Residual(32, 64, 2)
        )
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis of which ceil(size / stride) positions are to come."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class DSCNN(nn.Module):
    """Keyword spotting: a 10x4 convolution, then four depthwise and pointwise pairs."""

    def __init__(self, height: int = 49, width: int = 10, classes: int = 12) -> None:
        super().__init__()
        pads = (*_same(width, 4, 2), *_same(height, 10, 2))
        layers: list[nn.Module] = [
            nn.ZeroPad2d(pads),
            nn.Conv2d(1, 64, (10, 4), 2, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        ]
        for _ in range(4):
            layers += [*_conv(64, 64, groups=64), nn.ReLU(), *_conv(64, 64, 1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class MobileNetV1(nn.Module):
    """Visual wake words: MobileNetV1 of width 0.25 on 96x96 pixels."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_conv(3, 8, stride=2), nn.ReLU()]
        plan = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2)]
        plan += [(128, 1)] * 5 + [(256, 2), (256, 1)]
        before = 8
        for width, stride in plan:
            layers += [*_conv(before, before, 3, stride, before), nn.ReLU()]
            layers += [*_conv(before, width, 1), nn.ReLU()]
            before = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Autoencoder(nn.Module):
    """Anomaly detection: 640 values through 8 and back."""

    def __init__(self, inputs: int = 640, hidden: int = 128, code: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = inputs
        for width in (*[hidden] * 4, code, *[hidden] * 4):
            layers += [nn.Linear(before, width), nn.BatchNorm1d(width), nn.ReLU()]
            before = width
        self.layers = nn.Sequential(*layers, nn.Linear(before, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _shaped(net: nn.Module, name: str) -> nn.Module:
    """The network, which says what goes in."""
    net.example_input_shape = SHAPES[name]  # type: ignore[assignment]
    return net


def resnet8(seed: int = 0) -> nn.Module:
    """An untrained ResNet-8: 3x32x32 in, 10 logits out, 12.5 M multiply-accumulates."""
    return _shaped(seeded(ResNet8, seed), "resnet8")


def ds_cnn(seed: int = 0) -> nn.Module:
    """An untrained DS-CNN: 1x49x10 in, 12 logits out, 2.7 M multiply-accumulates."""
    return _shaped(seeded(DSCNN, seed), "ds_cnn")


def mobilenet(seed: int = 0) -> nn.Module:
    """An untrained MobileNetV1-0.25: 3x96x96 in, 2 logits out, 7.5 M multiply-accumulates."""
    return _shaped(seeded(MobileNetV1, seed), "mobilenet")


def autoencoder(seed: int = 0) -> nn.Module:
    """An untrained autoencoder: 640 values in and out, 0.26 M multiply-accumulates."""
    return _shaped(seeded(Autoencoder, seed), "autoencoder")


def fashion_resnet8(seed: int = 0) -> nn.Module:
    """An untrained ResNet-8 for Fashion-MNIST: 1x28x28 in, 10 logits out."""
    return _shaped(seeded(lambda: ResNet8(channels=1), seed), "fashion_resnet8")


def fashion_ds_cnn(seed: int = 0) -> nn.Module:
    """An untrained DS-CNN for Fashion-MNIST: 1x28x28 in, 10 logits out."""
    return _shaped(seeded(lambda: DSCNN(28, 28, 10), seed), "fashion_ds_cnn")
