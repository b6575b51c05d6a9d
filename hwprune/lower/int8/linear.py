"""int8 linear layers: as the 1x1 convolutions of their rows that they are."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from hwprune.lower.cpu.context import Context
from hwprune.lower.int8.conv import conv
from hwprune.lower.int8.emit import Code
from hwprune.lower.int8.machine import Machine
from hwprune.quantize.graph import Conv2d, IntegerTensor, Linear


def linear(
    op: Linear, x: IntegerTensor, y: IntegerTensor, machine: Machine, context: Context
) -> Code:
    """x W^T + b over the last axis."""
    rows, (outputs, features) = prod(x.shape[:-1]), op.weight.shape
    same = Conv2d(
        op.name, op.inputs, op.output, op.where,
        weight=op.weight.reshape(outputs, 1, 1, features), bias=op.bias, multiplier=op.multiplier,
        shift=op.shift, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1,
        clamp=op.clamp,
    )  # fmt: skip
    image, result = (replace(t, shape=(1, 1, rows, t.shape[-1])) for t in (x, y))
    made = conv(same, image, result, machine, context)
    return replace(made, rule="int8.linear")
