"""Weights with many zeros on disk: one bit for each weight, the values that are not zero, deflated.

In: tensors by name. Out: bytes, and the same tensors from them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from hwprune.errors import ArtifactError

SPARSE = "weights.sparse"
WORTH = 0.1  # tensors with a smaller share of zeros are kept whole
_WHOLE, _BITS, _VALUES, _SHAPE = "whole:", "bits:", "values:", "shape:"


def plain_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The tensors as safetensors hold them."""
    return save_tensors({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()})


def bitmap_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The tensors as bitmaps and values, where enough is zero; not deflated."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        there = flat != 0
        if int(there.sum()) > (1 - WORTH) * flat.numel():
            found[_WHOLE + name] = flat.reshape(tensor.shape).clone()
            continue
        found[_BITS + name] = torch.from_numpy(np.packbits(there.numpy()))
        found[_VALUES + name] = flat[there].clone()
        found[_SHAPE + name] = torch.tensor(list(tensor.shape), dtype=torch.int64)
    return save_tensors(found)


def sparse_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a file of sparse weights."""
    return zlib.compress(bitmap_bytes(tensors), 9)


def read_sparse(data: bytes, where: str = SPARSE) -> dict[str, Tensor]:
    """The tensors of `sparse_bytes`, bit for bit. ArtifactError where the data are not such."""
    try:
        held = load_tensors(zlib.decompress(data))
        found = {n.removeprefix(_WHOLE): t for n, t in held.items() if n.startswith(_WHOLE)}
        for key in [n for n in held if n.startswith(_BITS)]:
            name = key.removeprefix(_BITS)
            shape, values = held[_SHAPE + name].tolist(), held[_VALUES + name]
            there = np.unpackbits(held[key].numpy(), count=math.prod(shape)).astype(bool)
            flat = torch.zeros(len(there), dtype=values.dtype)
            flat[torch.from_numpy(there)] = values
            found[name] = flat.reshape(shape)
        return found
    except (zlib.error, SafetensorError, KeyError, ValueError, RuntimeError, IndexError) as error:
        raise ArtifactError(
            f"not sparse weights: {error}", where=where, hint="write them again with hwprune mask"
        ) from error
