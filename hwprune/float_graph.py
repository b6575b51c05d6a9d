"""Operators on float32 values, for networks that run as plain C on a microcontroller.

Such a network is an `IntegerGraph` whose tensors are all float32, with the same conventions: images
lie as (N, H, W, C). What only moves values (`Concat`, `Reshape`, `Transpose`) is the operator of
`quantize/graph.py`. The meaning of every operator is torch's; `bounds` clamp a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hwprune.quantize.graph import Operator, Pads, Pair

if TYPE_CHECKING:
    import numpy as np

Bounds = tuple[float, float]


@dataclass(frozen=True, eq=False)
class FloatConv2d(Operator):
    """Convolution with zero padding. weight: float32 (O, kh, kw, I / groups); bias: (O,)."""

    weight: np.ndarray
    bias: np.ndarray
    stride: Pair
    padding: Pads
    dilation: Pair
    groups: int
    bounds: Bounds
    kind: ClassVar[str] = "float_conv2d"


@dataclass(frozen=True, eq=False)
class FloatLinear(Operator):
    """x W^T + b over the last axis. weight: float32 (O, I); bias: (O,)."""

    weight: np.ndarray
    bias: np.ndarray
    bounds: Bounds
    kind: ClassVar[str] = "float_linear"


@dataclass(frozen=True, eq=False)
class FloatPair(Operator):
    """Sum ("add") or product ("mul") of two tensors; a second (N, 1, 1, C) is a gate."""

    function: str
    bounds: Bounds
    kind: ClassVar[str] = "float_pair"


@dataclass(frozen=True, eq=False)
class FloatPool(Operator):
    """Maximum or mean over windows; zeros outside the image count where `count_padding`."""

    maximum: bool
    kernel: Pair
    stride: Pair
    padding: Pads
    count_padding: bool
    bounds: Bounds
    kind: ClassVar[str] = "float_pool"


@dataclass(frozen=True, eq=False)
class FloatMean(Operator):
    """(N, H, W, C) -> (N, C) or (N, 1, 1, C)."""

    bounds: Bounds
    kind: ClassVar[str] = "float_mean"


@dataclass(frozen=True, eq=False)
class FloatPad(Operator):
    """An image with zeros around it."""

    padding: Pads
    kind: ClassVar[str] = "float_pad"


@dataclass(frozen=True, eq=False)
class FloatFunction(Operator):
    """A function of one value with its numbers: one of those of `lower/spec.py`'s `Step`."""

    function: str
    numbers: tuple[float, ...]
    kind: ClassVar[str] = "float_function"


@dataclass(frozen=True, eq=False)
class FloatPrelu(Operator):
    """A slope for each channel of the last axis below zero. slope: float32 (C,) or (1,)."""

    slope: np.ndarray
    kind: ClassVar[str] = "float_prelu"


@dataclass(frozen=True, eq=False)
class FloatSoftmax(Operator):
    """Softmax over the last axis."""

    kind: ClassVar[str] = "float_softmax"
