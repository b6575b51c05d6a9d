"""A linear layer as the 1x1 convolution of its rows that it is."""

from __future__ import annotations

from dataclasses import fields, replace
from math import prod
from typing import TypeVar

from hwprune.float_graph import FloatConv2d, FloatLinear
from hwprune.quantize.graph import Conv2d, IntegerTensor, Linear

Conv = TypeVar("Conv", Conv2d, FloatConv2d)


def as_convolution(
    op: Linear | FloatLinear, x: IntegerTensor, y: IntegerTensor, kind: type[Conv]
) -> tuple[Conv, IntegerTensor, IntegerTensor]:
    """The convolution, of a kind with the layer's fields, and its input and output as images."""
    rows, (outputs, features) = prod(x.shape[:-1]), op.weight.shape
    same = {field.name: getattr(op, field.name) for field in fields(op)}
    same["weight"] = op.weight.reshape(outputs, 1, 1, features)
    return (
        kind(**same, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1),
        replace(x, shape=(1, 1, rows, features)),
        replace(y, shape=(1, 1, rows, outputs)),
    )
