"""A small convolutional network with a residual and a depthwise part, for tests of the flow."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.left = nn.Sequential(
            nn.Conv2d(32, 64, 1), nn.BatchNorm2d(64), nn.ReLU6(),
            nn.Conv2d(64, 64, 3, 1, 1, groups=64), nn.BatchNorm2d(64), nn.ReLU6(),
            nn.Conv2d(64, 32, 1), nn.BatchNorm2d(32),
        )  # fmt: skip
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.left(x))
        return self.head(x.mean((2, 3)))


def small_net(seed: int = 0) -> nn.Module:
    """The network with random weights and batch-norm statistics."""
    torch.manual_seed(seed)
    net = SmallNet()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def nan_net() -> nn.Module:
    """A network with a NaN in its weights."""
    net = small_net()
    with torch.no_grad():
        net.head.weight[0, 0] = float("nan")
    return net


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.linear(x)
        return x


def unexportable() -> nn.Module:
    """A network whose control flow depends on data."""
    return Branching()
