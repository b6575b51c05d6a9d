"""Networks with every kind of integer operator, and the check of each of them by itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

from hwprune.quantize.quantizer import Quantized
from hwprune.quantize.reference import dequantize, run_all
from hwprune.quantize.simulate import ROUNDING
from tests.lower_helpers import randomise


class Branches(nn.Module):
    """Concatenation of a pool, a gate and a convolution; slopes, pads, a flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.slope = nn.PReLU(8)
        self.wide = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)
        self.before = nn.BatchNorm2d(24)
        self.squeeze = nn.Conv2d(24, 6, 1)
        self.hidden = nn.Linear(6 * 4 * 4, 12)
        self.head = nn.Linear(12, 5)
        self.box = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.slope(self.norm(self.stem(F.pad(x, (0, 1, 0, 1)))))
        gate = torch.sigmoid(x.mean((2, 3), keepdim=True))
        y = torch.cat([F.max_pool2d(x, 3, 1, 1), x * gate, F.relu6(self.wide(x))], 1)
        y = F.avg_pool2d(F.hardswish(self.before(y)), 2, 2)
        y = self.squeeze(y).permute(0, 3, 2, 1).reshape(x.shape[0], -1)
        y = F.silu(self.hidden(y))
        return torch.softmax(self.head(y), 1), self.box(y)


class Reader(nn.Module):
    """A flattened image that an activation reads, a padded average, scales that do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 3, padding=1)
        self.head = nn.Linear(10 * 3 * 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = F.avg_pool2d(torch.clamp(y, -0.5, 0.7) + torch.tanh(y), 2, 2, 1)
        y = torch.cat([y, torch.sigmoid(y)], 1)
        return self.head(torch.tanh(y.flatten(1) * 0.5))


def branches() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Branches()).eval()


def reader() -> nn.Module:
    torch.manual_seed(1)
    return Reader().eval()


def check_each_operator(quantized: Quantized, inputs: Tensor) -> int:
    """Every operator, on the very integers that it reads, is within a step of its simulation.

    Returns how many values were compared.
    """
    integers = run_all(quantized.graph, quantized.integers(inputs))
    compared = 0

    class Forced(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if n.target not in ROUNDING:
                return value
            nonlocal compared
            name, order = quantized.placed[n.args[0].name]
            tensor = quantized.graph.by_name[name]
            array = integers[name].transpose([order.index(d) for d in range(len(order))])
            real = dequantize(array, tensor.scale, tensor.zero_point)
            apart = np.abs(real - value.numpy()).max() / tensor.scale
            assert apart < 1.01, f"{name}: {apart} steps"
            compared += 1
            return torch.from_numpy(np.ascontiguousarray(real))

    with torch.no_grad():
        Forced(quantized.simulation()).run(inputs)
    return compared


def batch(shape: tuple[int, ...], count: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, *shape, generator=generator)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "branches": (branches, (3, 16, 16)),
    "reader": (reader, (2, 5, 5)),
}
