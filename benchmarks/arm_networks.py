"""Whole networks by the names of TVM's published tables: their convolutions and weights.

Out: for every name the `ConvShape`s in order and the bytes of the linear layers. Shapes are read
off a forward pass on the meta device; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from examples.models import torchvision_model
from hwprune.predict.conv_shape import BYTES, ConvShape

SIZES = {"inception-v3": 299}  # others 224
V1 = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


def mobilenet() -> nn.Module:
    """MobileNet (Howard et al., 2017), which torchvision does not have."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1)]
    channels = 32
    for out, stride in V1:
        layers += [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels)]
        layers += [nn.Conv2d(channels, out, 1)]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1000))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet": mobilenet,
    **{
        name: partial(torchvision_model, ours)
        for name, ours in {
            "densenet-121": "densenet121",
            "inception-v3": "inception_v3",
            "mobilenet-v2": "mobilenet_v2",
            "resnet-18": "resnet18",
            "resnet-50": "resnet50",
            "squeezenet-v1.0": "squeezenet1_0",
            "squeezenet-v1.1": "squeezenet1_1",
            "vgg-16": "vgg16",
            "vgg-19": "vgg19",
        }.items()
    },
}


def layers(name: str) -> tuple[tuple[ConvShape, ...], float]:
    """The convolutions of a network and the bytes of its linear layers' weights."""
    shapes: list[ConvShape] = []
    linear_bytes: list[float] = []

    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            shapes.append(_shape(module, inputs[0].shape, output.shape))
        else:
            linear_bytes.append(BYTES * prod(module.weight.shape))

    model = NETWORKS[name]().eval().to("meta")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(see)
    size = SIZES.get(name, 224)
    with torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    return tuple(shapes), sum(linear_bytes)


def _shape(module: nn.Conv2d, given: Any, made: Any) -> ConvShape:
    pad_y, pad_x = (int(p) for p in module.padding)
    return ConvShape(
        given[0], given[1], made[1], given[2] + 2 * pad_y, given[3] + 2 * pad_x, made[2], made[3],
        *module.kernel_size, module.stride[0], module.groups,
    )  # fmt: skip
