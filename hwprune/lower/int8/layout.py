"""How tensors of an int8 network lie in memory: channels last, rounded up, so that vectors fit.

A tensor of integers is one run of bytes: its rows of `padded(C)` values, of which those past C are
whatever they are and meet zero weights. float32 tensors are inputs and outputs, as torch has them.
"""

from __future__ import annotations

from math import prod

import numpy as np

from hwprune.lower.int8.machine import Machine
from hwprune.lower.spec import TensorSpec
from hwprune.quantize.graph import FLOAT32, IntegerTensor

STEPS = (4, 8, 16)  # values of a row: a word, and vectors of bytes


def padded(channels: int) -> int:
    """Values of a row of so many channels, with those that fill it up."""
    step = next((step for step in STEPS if channels <= step), STEPS[-1])
    return -(-channels // step) * step


def rows(tensor: IntegerTensor) -> int:
    """Rows of channels: pixels of an image."""
    return prod(tensor.shape[:-1])


def size(tensor: IntegerTensor) -> int:
    """Values in memory."""
    return rows(tensor) * padded(tensor.shape[-1])


def spec_of(tensor: IntegerTensor, machine: Machine) -> TensorSpec:
    """A tensor as kernels take it."""
    if tensor.dtype == FLOAT32:
        return TensorSpec(tensor.shape, FLOAT32)
    return TensorSpec((size(tensor),), machine.stored)


def stored(values: np.ndarray, machine: Machine) -> np.ndarray:
    """int8 values as they lie in memory, flat."""
    rest = padded(values.shape[-1]) - values.shape[-1]
    widths = [(0, 0)] * (values.ndim - 1) + [(0, rest)]
    whole = np.pad(values, widths).astype(np.int16) + machine.offset
    return whole.astype(machine.stored).reshape(-1)


def unstored(memory: np.ndarray, tensor: IntegerTensor, machine: Machine) -> np.ndarray:
    """The int8 values of a tensor from how they lie in memory."""
    channels = tensor.shape[-1]
    values = memory.reshape(*tensor.shape[:-1], padded(channels))[..., :channels]
    found: np.ndarray = (values.astype(np.int16) - machine.offset).astype(np.int8)
    return found


def same_memory(x: IntegerTensor, y: IntegerTensor) -> bool:
    """Whether the same elements in the same order lie the same in both shapes."""
    exact = all(padded(t.shape[-1]) == t.shape[-1] for t in (x, y))
    return exact or x.shape[-1] == y.shape[-1]
