"""How far two networks agree on the same images, without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def fidelity(
    dense: Callable[[Any], Any],
    pruned: Callable[[Any], Any],
    images: Tensor | Sequence[Tensor],
    *,
    batch: int = 16,
) -> dict[str, float]:
    """Share of images with the same top-1 class, and mean cosine of the outputs.

    Args:
        dense, pruned: functions of a batch (N, …) -> the first output, (N, …); torch or NumPy.
        images: (N, …), or a sequence of such batches.
        batch: images per call where `images` is one tensor.

    Both keys, "top1_agreement" and "cosine", are means over the images.
    """
    batches = images.split(batch) if isinstance(images, Tensor) else images
    agree, cosine, count = 0.0, 0.0, 0
    with torch.no_grad():
        for part in batches:
            a, b = _rows(dense(part)), _rows(pruned(part))
            agree += float((a.argmax(1) == b.argmax(1)).sum())
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            cosine += float(((a * b).sum(1) / np.maximum(norms, 1e-30)).sum())
            count += len(a)
    if count == 0:
        raise ValueError("no images to compare on")
    return {"top1_agreement": agree / count, "cosine": cosine / count}


@dataclass
class OutputError:
    """|y - y0|^2 / |y0|^2 over all numbers of the outputs y, those of the whole network y0."""

    wrong: float = 0.0
    size: float = 0.0

    def add(self, outputs: Any, whole: Sequence[Tensor]) -> None:
        """Add a batch's outputs; `whole` are the `numbers` of the whole network's."""
        for y, y0 in zip(numbers(outputs), whole, strict=True):
            self.wrong += float((y - y0).square().sum())
            self.size += float(y0.square().sum())

    @property
    def value(self) -> float:
        """Of all that was added."""
        return self.wrong / max(self.size, 1e-300)


def numbers(outputs: Any) -> list[Tensor]:
    """The floating-point tensors among outputs, float64."""
    leaves = [y for y in tree_leaves(outputs) if isinstance(y, Tensor)]
    return [y.detach().double() for y in leaves if y.is_floating_point()]


def _rows(output: Any) -> np.ndarray:
    """The first tensor of an output as (N, …) float64."""
    leaves = [x for x in tree_leaves(output) if isinstance(x, Tensor | np.ndarray)]
    array = leaves[0].detach().double().numpy() if isinstance(leaves[0], Tensor) else leaves[0]
    return array.reshape(len(array), -1).astype(np.float64)
