"""A linear layer as the 1x1 convolution of its rows that it is."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from hwprune.quantize.graph import Conv2d, IntegerTensor, Linear


def as_convolution(
    op: Linear, x: IntegerTensor, y: IntegerTensor
) -> tuple[Conv2d, IntegerTensor, IntegerTensor]:
    """The convolution, and its input and output as images of one row."""
    rows, (outputs, features) = prod(x.shape[:-1]), op.weight.shape
    same = Conv2d(
        name=op.name,
        inputs=op.inputs,
        output=op.output,
        where=op.where,
        weight=op.weight.reshape(outputs, 1, 1, features),
        bias=op.bias,
        multiplier=op.multiplier,
        shift=op.shift,
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=1,
        clamp=op.clamp,
    )
    return (
        same,
        replace(x, shape=(1, 1, rows, features)),
        replace(y, shape=(1, 1, rows, outputs)),
    )
