"""Pictures whose class is easily told, for tests that train."""

from __future__ import annotations

import torch

from examples.fashion_mnist import Split


def pictures(
    count: int, seed: int = 0, *, classes: int = 10, step: int = 2, height: int = 4
) -> Split:
    """Images (count, 1, 28, 28) of noise, brighter in `height` rows from `step` times the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = 0.3 * torch.randn(count, 1, 28, 28, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, step * label : step * label + height] += 2.0
    return Split(images, labels)
