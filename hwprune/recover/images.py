"""Unlabelled images from a directory, as the model's input: what `--calibrate IMAGES_DIR` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwprune.errors import HwpruneError, ModelError, ToolchainError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".npy")


def load_images(
    directory: str | Path,
    shape: Sequence[int],
    *,
    limit: int | None = None,
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """All images below `directory` as one tensor (N, channels, height, width) of `dtype`.

    Args:
        directory: searched recursively for pictures, and for `.npy` arrays, which are taken
            as they are: one input of the model each, of shape `shape[1:]`.
        shape: the model's input shape, batch first.
        limit: at most so many, drawn at random (seeded).
        mean, std: pictures are scaled to [0, 1], then (x - mean) / std, per channel or one for all.
        seed: of the draw.
        dtype: of the model's input; one of whole numbers takes arrays of these only.

    Raises HwpruneError where there is no directory or no image, or an image is unreadable or
    of the wrong shape.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise HwpruneError("no such directory of images", where=str(directory))
    files = sorted(f for f in directory.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    if not files:
        kinds = " ".join(SUFFIXES)
        raise HwpruneError("no images in this directory", where=str(directory), hint=kinds)
    if limit is not None and limit < len(files):
        chosen = np.random.default_rng(seed).choice(len(files), limit, replace=False)
        files = [files[i] for i in sorted(chosen)]
    return torch.stack([_load(file, tuple(shape[1:]), mean, std, dtype) for file in files])


def _load(
    file: Path,
    shape: tuple[int, ...],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    if file.suffix.lower() == ".npy":
        return _load_array(file, shape, dtype)
    if not dtype.is_floating_point:
        raise ModelError(f"a picture cannot be an input of {dtype}", where=str(file))
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ModelError(
            f"a picture cannot be an input of shape {shape}",
            where=str(file),
            hint="give .npy arrays of that shape",
        )
    image_module = pillow()
    try:
        with image_module.open(file) as image:
            return picture_tensor(image, shape, mean=mean, std=std).to(dtype)
    except OSError as error:
        raise HwpruneError(f"not a readable picture: {error}", where=str(file)) from error


def _load_array(file: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise HwpruneError(f"not a readable array: {error}", where=str(file)) from error
    if array.shape != shape:
        raise ModelError(
            f"the array has shape {array.shape}, the model takes {shape}", where=str(file)
        )
    if not dtype.is_floating_point and array.dtype.kind not in "iub":
        raise ModelError(f"the array is {array.dtype}, the model takes {dtype}", where=str(file))
    if array.dtype.kind not in "iubf":
        raise HwpruneError(f"the array holds no numbers but {array.dtype}", where=str(file))
    tensor = torch.from_numpy(np.array(array)).to(dtype)
    if not bool(tensor.isfinite().all()):
        raise HwpruneError("the array has values that are not finite", where=str(file))
    return tensor


def picture_tensor(
    image: Any,
    shape: Sequence[int],
    *,
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
    crop: float = 0.875,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Tensor:
    """A Pillow image as a float32 tensor of `shape` (channels, height, width).

    Bicubic resize so that the centre crop covers `crop` of the shorter side; transparent
    pixels show `background`.
    """
    channels, height, width = shape
    image_module = pillow()
    if image.mode in ("P", "LA", "RGBA", "PA"):
        image = image.convert("RGBA")
        backdrop = image_module.new("RGBA", image.size, (*background, 255))
        image = image_module.alpha_composite(backdrop, image)
    image = image.convert("L" if channels == 1 else "RGB")
    scale = max(height / image.height, width / image.width) / crop
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    image = image.resize(size, image_module.Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, np.float32).reshape(height, width, channels) / 255.0
    scaled = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


def pillow() -> Any:
    """Pillow's Image module; ToolchainError where the package is missing."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ToolchainError(
            "reading pictures needs the package pillow", hint="pip install pillow"
        ) from error
    return Image
