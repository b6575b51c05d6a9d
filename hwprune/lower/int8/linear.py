"""int8 linear layers: as the 1x1 convolutions of their rows that they are."""

from __future__ import annotations

from dataclasses import replace

from hwprune.lower.cpu.context import Context
from hwprune.lower.int8.conv import conv
from hwprune.lower.int8.emit import Code
from hwprune.lower.int8.machine import Machine
from hwprune.lower.linear_as_conv import as_convolution
from hwprune.quantize.graph import Conv2d, IntegerTensor, Linear


def linear(
    op: Linear, x: IntegerTensor, y: IntegerTensor, machine: Machine, context: Context
) -> Code:
    """x W^T + b over the last axis."""
    made = conv(*as_convolution(op, x, y, Conv2d), machine, context)
    return replace(made, rule="int8.linear")
