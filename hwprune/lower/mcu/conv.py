"""int8 convolutions with dual multiply-accumulate: four positions widened, then multiplied.

The inputs of four output positions are sign-extended into a scratch buffer once and used for every
output channel (as in CMSIS-NN, Lai et al., arXiv:1801.06601, which does so for two). Padding is
filled with the zero point, whose share of the sums is in the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from hwprune.lower.mcu import matmul
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
from hwprune.lower.mcu.scaling import Scaling, folded_bias, scaling_of
from hwprune.lower.mcu.window import Shape, emit_row
from hwprune.quantize.graph import Conv2d, IntegerTensor


def conv(op: Conv2d, x: IntegerTensor, y: IntegerTensor) -> CKernel:
    """A convolution of any stride, padding, dilation and number of groups."""
    bias, bound = folded_bias(op, op.weight, x.zero_point)
    shape = Shape.of(op, x, y)
    tile = matmul.WIDE if shape.positions >= matmul.WIDE.columns else matmul.TALL
    weights = np.concatenate([matmul.pack(w, tile) for w in shape.ordered(op.weight, tile)])
    scaling = scaling_of(op, y.zero_point, bound)
    depth = tile.depth(shape.kernel[0] * shape.run)
    arguments = [
        Argument("x", "int8", prod(x.shape)),
        constant("cw", weights),
        constant("cb", bias),
        *scaling.arguments,
        Argument("s", "int16", depth * tile.columns, const=False),
        Argument("y", "int8", prod(y.shape), const=False),
    ]

    def body(**buffers: Buffer) -> None:
        _Body(shape, tile, scaling, depth, x.zero_point, buffers).emit()

    return CKernel(
        rule=f"mcu.conv.{tile.channels}x{tile.columns}",
        func=build_function(arguments, body),
        arguments=tuple(arguments),
        constants=(weights, bias, *scaling.constants.values()),
        scratch_bytes=2 * depth * tile.columns,
        macs=shape.positions * op.weight.size,
        weight_reads=-(-shape.positions // tile.columns) * weights.size,
    )


@dataclass(frozen=True)
class _Body:
    shape: Shape
    tile: matmul.Tile
    scaling: Scaling
    depth: int
    zero_point: int
    buffers: dict[str, Buffer]

    def emit(self) -> None:
        shape, columns = self.shape, self.tile.columns
        with loop(shape.groups) as group:
            with loop(-(-shape.positions // columns)) as tile:
                # The last tile begins early: some positions are computed twice.
                first = tile * columns
                if shape.positions % columns:
                    first = bind(tirx.min(first, shape.positions - columns))
                with loop(columns) as column:
                    self._gather(first + column, column, group)
                run("barrier")
                row = shape.groups * shape.outputs
                matmul.emit_product(
                    self.tile,
                    shape.outputs,
                    self.depth,
                    self.buffers,
                    self.scaling,
                    0,
                    first * row,
                    row,
                    group,
                )

    def _gather(self, position: Expr, column: Expr, group: Expr) -> None:
        """Widen what one output position reads."""
        shape = self.shape
        if shape.pointwise:
            pixel = (position * shape.groups + group) * shape.depth
            return self._widen(column * 2, pixel, shape.depth, 0)
        row = bind(T.floordiv(position, shape.out_width) * shape.stride[0] - shape.padding[0])
        left = bind(T.floormod(position, shape.out_width) * shape.stride[1] - shape.padding[1])
        if not shape.contiguous:
            return self._gather_rows(column, row, left, group)
        if shape.inside:
            return self._gather_inside(column, row, left)
        with T.If(tirx.all(*shape.within(row, left))):
            with T.Then():
                self._gather_inside(column, row, left)
            with T.Else():
                self._gather_rows(column, row, left, group)

    def _gather_inside(self, column: Expr, row: Expr, left: Expr) -> None:
        """A window that lies in the image: rows of one length."""
        shape = self.shape
        pixel = bind((row * shape.width + left) * shape.depth)
        step = shape.dilation[0] * shape.width * shape.depth
        with loop(shape.kernel[0]) as i:
            to = i * (shape.run * self.tile.columns) + column * 2
            self._widen(to, pixel + i * step, shape.kernel[1] * shape.depth, 0)

    def _gather_rows(self, column: Expr, row: Expr, left: Expr, group: Expr) -> None:
        shape = self.shape
        with loop(shape.kernel[0]) as i:
            to = bind(i * (shape.run * self.tile.columns) + column * 2)
            y = bind(row + i * shape.dilation[0])
            with T.If(tirx.all(y >= 0, y < shape.height)):
                with T.Then():
                    self._gather_row(to, y, left, group)
                with T.Else():
                    self._fill(to, shape.kernel[1] * shape.depth, 0)

    def _gather_row(self, to: Expr, y: Expr, left: Expr, group: Expr) -> None:
        def copy(k: Expr, pixel: Expr, count: Expr) -> None:
            self._widen(to, pixel, count, k)

        def fill(k: Expr, count: Expr) -> None:
            self._fill(to, count, k)

        emit_row(self.shape, y, left, group, copy, fill)

    def _widen(self, to: Expr, pixel: Expr, count: Expr, k: Expr) -> None:
        """`count` elements from element k of a column that begins at `to`."""
        x, s, pitch = self.buffers["x"], self.buffers["s"], i32(self.tile.columns)
        if self.shape.by_four:
            run("widen4", at(s, to + k * self.tile.columns), at(x, pixel), i32(count), pitch)
        else:
            run("widen", at(s, to), at(x, pixel), i32(count), i32(k), pitch)

    def _fill(self, to: Expr, count: Expr, k: Expr) -> None:
        value, pitch = i32(self.zero_point), i32(self.tile.columns)
        run("fill", at(self.buffers["s"], to), value, i32(count), i32(k), pitch)
