"""Every architecture family of three libraries, as modules with random weights and inputs.

Out: `Family`s, each with its models' names; `build` makes one and the smallest sensible input.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from examples.torchvision_ops import declare

SIZES = (96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)  # pixels; from 96 on, 32 fit thrice
LARGE_INPUT = 320  # pixels; a model whose own input is larger is asked for a smaller one
SMALLER_INPUT = 256  # what it is asked for: windows of 7 and 8 and patches of 14 and 16 are padded
LARGE_MODEL = 200_000_000  # parameters; a model with more is asked for fewer blocks
FEWER_BLOCKS = 4
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Family:
    """An architecture family of a library and the names of its models."""

    library: str
    name: str
    models: tuple[str, ...]


def families() -> list[Family]:
    """All families of every library that is installed."""
    declare()
    listed: list[Family] = []
    for library, find in _FAMILIES.items():
        if importlib.util.find_spec(library) is not None:
            found = find()
            listed += [Family(library, name, tuple(sorted(found[name]))) for name in sorted(found)]
    return listed


def build(library: str, name: str) -> tuple[nn.Module, Inputs]:
    """A model in evaluation mode and example inputs, batch of one; the same on every call."""
    declare()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = _BUILD[library](name)
    return model.eval(), inputs


def smallest(library: str, models: Sequence[str]) -> Iterator[str]:
    """Yield the best candidate so far for the model with the fewest parameters."""
    declare()
    fewest = float("inf")
    for name in models:
        try:
            with torch.device("meta"):
                count = _PARAMETERS[library](name)
        except Exception:  # a model that cannot be made without memory is not the smallest
            continue
        if count < fewest:
            fewest = count
            yield name


def _torchvision_families() -> dict[str, list[str]]:
    """Models by their names without version of size: "resnet" has resnet18 to resnet152."""
    from torchvision import models

    found: dict[str, list[str]] = defaultdict(list)
    for name in models.list_models():
        if not name.startswith("quantized_"):
            stem = re.sub(r"_(tiny|small|base|large|[tbslmhxy])(?=_|$|\d).*", "", name)
            found[re.sub(r"(?<!v)\d.*", "", stem).rstrip("_")].append(name)
    return found


def _timm_families() -> dict[str, list[str]]:
    """Models by the module that defines them; timm's own toys for tests are left out."""
    import timm
    from timm.models._registry import _model_to_module

    found: dict[str, list[str]] = defaultdict(list)
    for name in timm.list_models():
        if not name.startswith("test_"):
            found[_model_to_module[name]].append(name)
    return found


def _transformers() -> dict[str, tuple[str, Callable[[], tuple[nn.Module, Inputs]]]]:
    listed = importlib.import_module("benchmarks.coverage_transformers").models()
    return {name: (family, make) for family, name, make in listed}


def _transformers_families() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, (family, _) in _transformers().items():
        found[family].append(name)
    return found


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _torchvision_parameters(name: str) -> int:
    from torchvision import models

    return int(next(iter(models.get_model_weights(name))).meta["num_params"])


def _timm_parameters(name: str) -> int:
    import timm

    return _count(timm.create_model(name))


def _build_torchvision(name: str) -> tuple[nn.Module, Inputs]:
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": True, "aux_logits": False}
    builder = models.get_model_builder(name)
    if ".detection." in builder.__module__:
        return _detector(models.get_model(name, **options, weights_backbone=None))
    if ".segmentation." in builder.__module__:
        model = models.get_model(name, **options, weights_backbone=None)
        return model, (torch.randn(1, 3, 96, 96),)
    model = models.get_model(name, **options)
    if ".optical_flow." in builder.__module__:
        return model, (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))
    if ".video." in builder.__module__:
        return model, first_that_runs(model, [(3, 16, s, s) for s in (64, 112, 224)])
    crops = next(iter(models.get_model_weights(name))).transforms.keywords
    return model, first_that_runs(model, [(3, s, s) for s in (*SIZES, crops["crop_size"])])


def _build_timm(name: str) -> tuple[nn.Module, Inputs]:
    import timm

    model = timm.create_model(name)
    if _count(model) > LARGE_MODEL:
        with contextlib.suppress(TypeError, AssertionError):  # the model has no such option
            model = timm.create_model(name, depth=FEWER_BLOCKS)
    channels, *size = model.pretrained_cfg["input_size"]
    if model.pretrained_cfg.get("fixed_input_size") and max(size) > LARGE_INPUT:
        try:
            model = timm.create_model(name, img_size=SMALLER_INPUT)
            size = [SMALLER_INPUT, SMALLER_INPUT]
        except Exception:  # the model has one size only
            pass
    if model.pretrained_cfg.get("fixed_input_size"):
        return model, (torch.randn(1, channels, *size),)
    smaller = [(channels, s, s) for s in SIZES if s < max(size)]
    return model, first_that_runs(model, [*smaller, (channels, *size)])


def first_that_runs(model: nn.Module, shapes: Sequence[tuple[int, ...]]) -> Inputs:
    """A random batch of one, of the first shape that the model takes; else of the last."""
    model.eval()
    for shape in shapes[:-1]:
        x = torch.randn(1, *shape)
        try:
            with torch.no_grad():
                model(x)
        except Exception:
            continue
        return (x,)
    return (torch.randn(1, *shapes[-1]),)


class Detector(nn.Module):
    """The parts of a torchvision detector without data-dependent sizes: backbone and heads.

    Takes images and, where there are heads on regions, the pooled features of one region for
    each image. Boxes are decoded and suppressed outside.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.dense_head = model.rpn.head if hasattr(model, "rpn") else model.head
        regions = getattr(model, "roi_heads", None)
        self.region_heads = nn.ModuleList(
            nn.Sequential(*parts) for parts in _region_parts(regions) if None not in parts
        )

    def forward(self, images: Tensor, *regions: Tensor) -> tuple[Any, ...]:
        features = self.backbone(images)
        levels = [features] if isinstance(features, Tensor) else list(features.values())
        heads = zip(self.region_heads, regions, strict=True)
        return (self.dense_head(levels), *(head(region) for head, region in heads))


def _region_parts(regions: Any) -> list[tuple[Any, Any]]:
    """(head, predictor) of boxes, masks and keypoints, where a detector has regions."""
    names = ("box", "mask", "keypoint") if regions is not None else ()
    return [(getattr(regions, f"{n}_head"), getattr(regions, f"{n}_predictor")) for n in names]


def _detector(model: Any) -> tuple[nn.Module, Inputs]:
    detector = Detector(model)
    size = getattr(model.transform, "fixed_size", None) or (128, 128)
    inputs = [torch.randn(1, 3, *size)]
    regions = getattr(model, "roi_heads", None)
    pools = [("box", "box_roi_pool"), ("mask", "mask_roi_pool"), ("keypoint", "keypoint_roi_pool")]
    for part, pool in pools if regions is not None else []:
        if getattr(regions, f"{part}_head") is not None:
            window = getattr(regions, pool).output_size
            inputs.append(torch.randn(1, model.backbone.out_channels, *window))
    return detector, tuple(inputs)


def _build_transformers(name: str) -> tuple[nn.Module, Inputs]:
    model, inputs = _transformers()[name][1]()
    return model, tuple(inputs)


def _transformers_parameters(name: str) -> int:
    return _count(_transformers()[name][1]()[0])


_FAMILIES = {
    "torchvision": _torchvision_families,
    "timm": _timm_families,
    "transformers": _transformers_families,
}
_PARAMETERS: dict[str, Callable[[str], int]] = {
    "torchvision": _torchvision_parameters,
    "timm": _timm_parameters,
    "transformers": _transformers_parameters,
}
_BUILD: dict[str, Callable[[str], tuple[nn.Module, Inputs]]] = {
    "torchvision": _build_torchvision,
    "timm": _build_timm,
    "transformers": _build_transformers,
}
