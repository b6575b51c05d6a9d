"""What a value shows of the units that a layer reads in it, added to sums."""

from __future__ import annotations

import torch
from torch import Tensor

from hwprune.recover.layers import patches_at, positions
from hwprune.score.evidence import Read, Seen

PATCHES = 1024  # of a batch: enough for the covariance of what a unit gives


def add_values(seen: Seen, read: Read, value: Tensor) -> None:
    """Sums over all positions, by channel."""
    rows = value.movedim(read.dim, 0).flatten(1)
    seen.count += rows.shape[1]
    seen.total = seen.total + rows.sum(1).double().cpu()
    seen.square = seen.square + rows.square().sum(1).double().cpu()
    seen.nonzero = seen.nonzero + (rows != 0).sum(1).double().cpu()


def add_ranks(seen: Seen, read: Read, value: Tensor) -> None:
    """Ranks of feature maps, by unit, summed over images."""
    index = torch.from_numpy(read.index)
    maps = value.movedim(read.dim, 1)
    if maps.ndim >= 4:
        ranks = torch.linalg.matrix_rank(maps.flatten(3).float())  # (images, channels)
        by_unit = ranks.double()[:, index].mean(2)
    else:
        units = maps.reshape(len(maps), maps.shape[1], -1)[:, index]
        by_unit = torch.linalg.matrix_rank(units.float()).double()
    seen.images += len(maps)
    seen.rank = seen.rank + by_unit.sum(0).cpu()


def add_patches(seen: Seen, read: Read, value: Tensor, weight: Tensor, seed: int) -> None:
    """First and second moments of what each unit gives to the layer, at some of its positions."""
    layer = read.layer
    shape = tuple(value.shape)
    if layer.spatial:
        sizes = [
            (size + 2 * pad - dilation * (taps - 1) - 1) // stride + 1
            for size, pad, dilation, taps, stride in zip(
                shape[2:], layer.padding, layer.dilation, weight.shape[2:], layer.stride,
                strict=True,
            )
        ]  # fmt: skip
        shape = (shape[0], len(weight), *sizes)
    at = positions(layer, shape, PATCHES, seed)
    patches = patches_at(layer, value, weight, at).transpose(0, 1)  # (samples, groups, inputs)
    channels = patches.reshape(len(at), value.shape[read.dim], -1)
    blocks = channels[:, torch.from_numpy(read.blocks)].flatten(2).double().transpose(0, 1)
    seen.patches += len(at)
    seen.patch = seen.patch + blocks.sum(1).cpu()
    seen.outer = seen.outer + (blocks.transpose(1, 2) @ blocks).cpu()
