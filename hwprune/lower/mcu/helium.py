"""int8 convolutions on cores with Helium: vectors of sixteen products summed into one register.

What four output positions read is copied side by side, a row of the scratch buffer each, and used
for every output channel (VMLADAVA; Arm DDI 0553). A single position takes four channels at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from hwprune.lower.mcu import emit
from hwprune.lower.mcu.emit import (
    Argument,
    Buffer,
    CKernel,
    Expr,
    T,
    at,
    bind,
    build_function,
    constant,
    i32,
    loop,
    run,
    tirx,
)
from hwprune.lower.mcu.gather import Gather
from hwprune.lower.mcu.scaling import Scaling, folded_bias, scaling_of
from hwprune.lower.mcu.window import Shape
from hwprune.quantize.graph import Conv2d, IntegerTensor

LANES = 16
TILE = 4


def conv(op: Conv2d, x: IntegerTensor, y: IntegerTensor) -> CKernel:
    """A convolution of any stride, padding, dilation and number of groups."""
    bias, bound = folded_bias(op, op.weight, x.zero_point)
    shape = Shape.of(op, x, y)
    columns = TILE if shape.positions >= TILE else 1
    weights = _packed(op.weight, shape)
    scaling = scaling_of(op, y.zero_point, bound)
    depth = weights.shape[1]
    arguments = [
        Argument("x", "int8", prod(x.shape)),
        constant("cw", weights),
        constant("cb", bias),
        *scaling.arguments,
        Argument("s", "int8", depth * columns, const=False),
        Argument("y", "int8", prod(y.shape), const=False),
    ]

    def body(**buffers: Buffer) -> None:
        _Body(shape, columns, scaling, depth, x.zero_point, buffers).emit()

    return CKernel(
        rule=f"mcu.helium.1x{columns}",
        func=build_function(arguments, body),
        arguments=tuple(arguments),
        constants=(weights, bias, *scaling.constants.values()),
        scratch_bytes=depth * columns,
        macs=shape.positions * op.weight.size,
        weight_reads=-(-shape.positions // columns) * weights.size,
    )


def _packed(weight: np.ndarray, shape: Shape) -> np.ndarray:
    """(O, K): K in whole vectors, the channels of a group in whole fours; zeros between."""
    flat = weight.reshape(shape.groups, shape.outputs, -1)
    more = -shape.outputs % TILE if shape.positions < TILE else 0
    padded = np.pad(flat, ((0, 0), (0, more), (0, -flat.shape[2] % LANES)))
    return np.ascontiguousarray(padded.reshape(-1, padded.shape[2]))


@dataclass(frozen=True)
class _Body:
    shape: Shape
    columns: int
    scaling: Scaling
    depth: int
    zero_point: int
    buffers: dict[str, Buffer]

    def emit(self) -> None:
        shape, columns = self.shape, self.columns
        row = shape.groups * shape.outputs
        gather = Gather(shape, self.zero_point, self.buffers)
        with loop(shape.groups) as group, loop(-(-shape.positions // columns)) as tile:
            first = tile * columns
            if shape.positions % columns:
                first = bind(tirx.min(first, shape.positions - columns))
            with loop(columns) as column:
                gather.emit(first + column, column * self.depth, group)
            if columns == 1:
                self._rows(first * row, group)
            else:
                with loop(shape.outputs) as channel:
                    self._channel(first * row, group * shape.outputs + channel, row)

    def _channel(self, first: Expr, channel: Expr, row: int) -> None:
        """One channel of all columns."""
        b = self.buffers
        acc = emit.accumulators(self.columns)
        bias = bind(b["cb"][channel])
        for c in range(self.columns):
            T.buffer_store(acc, bias, [c])
        w = at(b["cw"], channel * self.depth)
        run("dot_1x4", at(acc, 0), w, at(b["s"], 0), i32(self.depth))
        constants = self.scaling.channel(b, channel)
        for c in range(self.columns):
            T.buffer_store(
                b["y"], self.scaling.value(acc[c], constants), [first + c * row + channel]
            )

    def _rows(self, first: Expr, group: Expr) -> None:
        """All channels of a group for one column, four at a time."""
        b, outputs = self.buffers, self.shape.outputs
        blocks, rest = divmod(outputs, TILE)
        rows = group * (-(-outputs // TILE) * TILE)

        def block(index: Expr, channels: int) -> None:
            acc = emit.accumulators(TILE)
            channel = group * outputs + index * TILE
            for j in range(TILE):
                T.buffer_store(acc, b["cb"][channel + min(j, channels - 1)], [j])
            w = at(b["cw"], (rows + index * TILE) * self.depth)
            run("dot_1x4", at(acc, 0), at(b["s"], 0), w, i32(self.depth))
            for j in range(channels):
                constants = self.scaling.channel(b, channel + j)
                value = self.scaling.value(acc[j], constants)
                T.buffer_store(b["y"], value, [first + channel + j])

        if blocks:
            with loop(blocks) as index:
                block(index, TILE)
        if rest:
            block(blocks, rest)
