"""Real photos for EfficientNet-Lite0: a few labelled ones, and unlabelled ones to calibrate on.

Sources: the 20 labelled ImageNet photos in the package foolbox, the cut-outs of the Debian
package tuxpaint-stamps-default (labelled where their description is the name of an ImageNet
class), the photos in scikit-image. `calibration` and `held_out` never share a photo.
"""

from __future__ import annotations

import importlib.util
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from examples.torchvision_ops import declare
from hwprune.recover.images import picture_tensor, pillow

STAMPS = Path("/usr/share/tuxpaint/stamps")
_SKIMAGE = (
    *("astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "grass", "gravel"),
    *("hubble_deep_field", "ihc", "moon", "motorcycle_left", "retina", "rocket"),
)
_NO_PHOTOS = ("cartoon", "symbols", "silo", "flags", "alphabet", "clipart")


@dataclass(frozen=True)
class Photo:
    """A picture on disk and its ImageNet class, None where it is not known."""

    path: Path
    label: int | None = None


def foolbox_photos() -> tuple[Photo, ...]:
    """The 20 ImageNet photos of foolbox, labelled by file name; empty where it is missing."""
    directory = _package_directory("foolbox")
    if directory is None:
        return ()
    files = sorted((directory / "data").glob("imagenet_*_*.jpg"))
    files += sorted((directory / "data").glob("imagenet_*_*.png"))
    return tuple(Photo(f, int(f.stem.rsplit("_", 1)[1])) for f in files)


def skimage_photos() -> tuple[Photo, ...]:
    """scikit-image's photos, without labels; empty where it is missing."""
    directory = _package_directory("skimage")
    if directory is None:
        return ()
    files = [f for name in _SKIMAGE for f in sorted((directory / "data").glob(f"{name}.*"))]
    return tuple(Photo(f) for f in files if f.suffix in (".png", ".jpg"))


def stamp_photos(directory: Path = STAMPS) -> tuple[Photo, ...]:
    """The described cut-outs of Tux Paint, sorted by path; empty where it is not installed."""
    if not directory.is_dir():
        return ()
    classes = imagenet_classes()
    photos = []
    for path in sorted(directory.rglob("*.png")):
        text = path.with_suffix(".txt")
        drawn = any(word in str(path.relative_to(directory)) for word in _NO_PHOTOS)
        if drawn or not text.exists() or path.stem.endswith("_mirror"):
            continue
        lines = text.read_text("utf-8", "replace").splitlines()
        photos.append(Photo(path, classes.get(normalise(lines[0])) if lines else None))
    return tuple(photos)


def normalise(description: str) -> str:
    """ "A Golden Retriever." -> "golden retriever"."""
    words = re.sub(r"[^a-z ]+", " ", description.lower()).split()
    return " ".join(words[1:] if words[:1] in (["a"], ["an"], ["the"]) else words)


def imagenet_classes() -> dict[str, int]:
    """Normalised names of the ImageNet classes that are unambiguous; empty without torchvision."""
    if importlib.util.find_spec("torchvision") is None:
        return {}
    declare()
    from torchvision.models import _meta

    keys = [normalise(name) for name in _meta._IMAGENET_CATEGORIES]
    return {key: i for i, key in enumerate(keys) if keys.count(key) == 1}


def calibration(count: int = 128, seed: int = 0) -> Tensor:
    """Unlabelled images (count, 3, 224, 224): scikit-image's photos, then stamps."""
    stamps = [p for p in stamp_photos() if not _held_out(p)]
    order = torch.randperm(len(stamps), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [*skimage_photos(), *(stamps[i] for i in order)][:count]
    if not chosen:
        raise FileNotFoundError(
            "no photos to calibrate on: install the Debian package tuxpaint-stamps-default "
            "or the Python package scikit-image"
        )
    return load(chosen)


def held_out(limit: int | None = None) -> tuple[Tensor, tuple[int | None, ...]]:
    """Images to judge by and their labels: foolbox's, labelled stamps, other stamps."""
    stamps = [p for p in stamp_photos() if _held_out(p)]
    stamps.sort(key=lambda p: p.label is None)
    photos = [*foolbox_photos(), *stamps][:limit]
    if not photos:
        raise FileNotFoundError(
            "no photos to judge by: install the Python package foolbox or the Debian package "
            "tuxpaint-stamps-default"
        )
    return load(photos), tuple(p.label for p in photos)


def load(photos: Sequence[Photo], size: int = 224) -> Tensor:
    """Preprocessed for EfficientNet-Lite0: bicubic, 0.875 centre crop, mean = std = 0.5.

    Cut-outs are squared and shown on white or grey in turn.
    """
    image_module = pillow()
    tensors = []
    for index, photo in enumerate(photos):
        background = (255, 255, 255) if index % 2 == 0 else (128, 128, 128)
        with image_module.open(photo.path) as opened:
            image = opened
            if opened.mode in ("RGBA", "LA", "P", "PA"):
                image = _squared(opened.convert("RGBA"))
            tensors.append(picture_tensor(image, (3, size, size), background=background))
    return torch.stack(tensors)


def _squared(image):  # type: ignore[no-untyped-def]
    box = image.getbbox() or (0, 0, image.width, image.height)
    image = image.crop(box)
    side = round(max(image.size) * 1.2)
    square = pillow().new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _held_out(photo: Photo) -> bool:
    return photo.label is not None or zlib.crc32(photo.path.name.encode()) % 4 == 0


def _package_directory(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
