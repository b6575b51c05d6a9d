"""Fashion-MNIST from the Debian package `dataset-fashion-mnist`, and two small networks for it."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from examples.seeded import seeded

DIRECTORY = Path("/usr/share/datasets/fashion-mnist")
MEAN, STD = 0.2860, 0.3530  # of the training images, in [0, 1]


@dataclass(frozen=True)
class Split:
    """Normalised images (N, 1, 28, 28) float32 and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, count: int) -> Split:
        """The first `count` images."""
        return Split(self.images[:count], self.labels[:count])


def available(directory: Path = DIRECTORY) -> bool:
    """Whether the data set is installed."""
    return (directory / "train-images-idx3-ubyte.gz").exists()


def load(split: str, directory: Path = DIRECTORY) -> Split:
    """`split` is "train" (60,000 images) or "t10k" (the 10,000 test images)."""
    if not available(directory):
        raise FileNotFoundError(
            f"Fashion-MNIST is not in {directory}: install the Debian package dataset-fashion-mnist"
        )
    pixels = read_idx(directory / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(directory / f"{split}-labels-idx1-ubyte.gz")
    images = torch.from_numpy(pixels).float().div_(255.0).sub_(MEAN).div_(STD).unsqueeze(1)
    return Split(images, torch.from_numpy(labels.astype(np.int64)))


def read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes, in its own shape."""
    data = gzip.decompress(path.read_bytes())
    zero, kind, dims = struct.unpack_from(">HBB", data)
    if zero != 0 or kind != 8:
        raise ValueError(f"{path}: not an IDX file of unsigned bytes")
    shape = struct.unpack_from(f">{dims}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()


class Batches:
    """Shuffled batches of a split, flipped and shifted at random; the same for the same epoch."""

    def __init__(self, split: Split, batch: int = 128, *, augment: bool = True, seed: int = 0):
        self.split, self.batch, self.augment, self.seed = split, batch, augment, seed

    def __len__(self) -> int:
        return len(self.split) // self.batch

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
        order = torch.randperm(len(self.split), generator=generator)
        for i in range(len(self)):
            rows = order[i * self.batch : (i + 1) * self.batch]
            images = self.split.images[rows]
            yield augment(images, generator) if self.augment else images, self.split.labels[rows]


def augment(images: Tensor, generator: torch.Generator, shift: int = 2) -> Tensor:
    """Flip half of the images left to right and move each by up to `shift` pixels."""
    count, _, height, width = images.shape
    flip = torch.rand(count, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    background = -MEAN / STD
    padded = nn.functional.pad(images, (shift,) * 4, value=background)
    dy, dx = torch.randint(0, 2 * shift + 1, (2, count), generator=generator)
    rows = (dy[:, None] + torch.arange(height))[:, None, :, None]
    columns = (dx[:, None] + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(count)[:, None, None, None], 0, rows, columns]


class _Residual(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut (1x1 where the shape changes)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Stages of residual blocks, each at half the pixels of the last, 1x28x28 in, 10 logits out.

    `stride` is the stem's: with 2, three stages have 14, 7 and 4 pixels a side.
    """

    def __init__(
        self, widths: tuple[int, ...] = (32, 64, 128), blocks: int = 2, stride: int = 2
    ) -> None:
        super().__init__()
        stem = nn.Conv2d(1, widths[0], 3, stride, 1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(widths[0]), nn.ReLU())
        stages: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stages.append(_Residual(before, width, 2 if stage and block == 0 else 1))
                before = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def _conv_bn(width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list:
    conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(width)]


class _Inverted(nn.Module):
    """Expand by 1x1, filter depthwise by 3x3, project by 1x1; residual where the shape stays."""

    def __init__(self, width_in: int, width: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = width_in * expand
        self.body = nn.Sequential(
            *_conv_bn(width_in, hidden, 1),
            nn.ReLU6(),
            *_conv_bn(hidden, hidden, 3, stride, hidden),
            nn.ReLU6(),
            *_conv_bn(hidden, width, 1),
        )
        self.residual = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class SmallMobileNet(nn.Module):
    """Inverted residuals (28 -> 14 -> 7 -> 4 pixels), 1x28x28 in, 10 logits out."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96), blocks: int = 2, expand: int = 4):
        super().__init__()
        layers: list[nn.Module] = [*_conv_bn(1, widths[0], 3, 2), nn.ReLU6()]
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(_Inverted(before, width, 2 if stage and block == 0 else 1, expand))
                before = width
        self.features = nn.Sequential(*layers, *_conv_bn(before, 4 * before, 1), nn.ReLU6())
        self.head = nn.Linear(4 * before, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def resnet(seed: int = 0) -> nn.Module:
    """An untrained SmallResNet (ResNet-14: 0.7 M parameters, 21 M MACs)."""
    return seeded(SmallResNet, seed)


def mobilenet(seed: int = 0) -> nn.Module:
    """An untrained SmallMobileNet."""
    return seeded(SmallMobileNet, seed)
