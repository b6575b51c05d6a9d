"""int8 convolutions with dual multiply-accumulate: four positions widened, then multiplied.

The inputs of four output positions are sign-extended into a scratch buffer once and used for every
output channel (as in CMSIS-NN, Lai et al., arXiv:1801.06601, which does so for two). Padding is
filled with the zero point, whose share of the sums is in the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from hwprune.float_graph import FloatConv2d
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
class Shape:
    """The integers of a convolution."""

    height: int
    width: int
    depth: int  # channels in of a group
    groups: int
    outputs: int  # channels out of a group
    out_width: int
    positions: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]  # top, left
    dilation: tuple[int, int]

    @staticmethod
    def of(op: Conv2d | FloatConv2d, x: IntegerTensor, y: IntegerTensor) -> Shape:
        """Those of an operator, its input and its output."""
        outputs, kh, kw, depth = op.weight.shape
        return Shape(
            height=x.shape[1],
            width=x.shape[2],
            depth=depth,
            groups=op.groups,
            outputs=outputs // op.groups,
            out_width=y.shape[2],
            positions=y.shape[1] * y.shape[2],
            kernel=(kh, kw),
            stride=op.stride,
            padding=op.padding[:2],
            dilation=op.dilation,
        )

    @property
    def run(self) -> int:
        """Elements of a row of the kernel, made even: every row begins with a whole word."""
        size = self.kernel[1] * self.depth
        return size + size % 2

    @property
    def by_four(self) -> bool:
        """Whether pixels are widened by four, which reorders them."""
        return self.depth % 4 == 0

    @property
    def contiguous(self) -> bool:
        """Whether the pixels under a row of the kernel lie side by side."""
        return self.groups == 1 and (self.kernel[1] == 1 or self.dilation[1] == 1)

    @property
    def spans(self) -> tuple[int, int]:
        """Rows and columns from the first to the last that a window reads."""
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        return (kh - 1) * dh, (kw - 1) * dw

    @property
    def inside(self) -> bool:
        """Whether every window lies in the image."""
        ends = (
            (out - 1) * s + span < size
            for out, s, span, size in zip(
                (self.positions // self.out_width, self.out_width),
                self.stride,
                self.spans,
                (self.height, self.width),
                strict=True,
            )
        )
        return self.padding == (0, 0) and all(ends)

    def within(self, top: Expr, left: Expr) -> tuple[Expr, ...]:
        """The conditions under which the window that begins there lies in the image."""
        rows, columns = self.spans
        return (top >= 0, top + rows < self.height, left >= 0, left + columns < self.width)

    @property
    def pointwise(self) -> bool:
        """Whether position p reads pixel p alone."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    def ordered(self, weight: np.ndarray, tile: matmul.Tile) -> list[np.ndarray]:
        """(O / groups, K) of every group, K as the scratch buffer has it."""
        kh, _ = self.kernel
        rows = weight.reshape(weight.shape[0], kh, -1)
        if self.by_four:
            rows = rows[:, :, matmul.interleaved(rows.shape[2])]
        rows = np.pad(rows, ((0, 0), (0, 0), (0, self.run - rows.shape[2])))
        return np.split(rows.reshape(weight.shape[0], -1), self.groups)


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
        shape, depth = self.shape, self.shape.depth
        taps = shape.kernel[1]
        if shape.contiguous:
            low = bind(tirx.max(i32(0), tirx.min(i32(taps), 0 - left)))
            high = bind(tirx.max(low, tirx.min(i32(taps), shape.width - left)))
            pixel = ((y * shape.width) + left + low) * depth
            self._fill(to, low * depth, 0)
            self._widen(to, pixel, (high - low) * depth, low * depth)
            self._fill(to, (taps - high) * depth, high * depth)
            return
        for j in range(taps):
            x = bind(left + j * shape.dilation[1])
            with T.If(tirx.all(x >= 0, x < shape.width)):
                with T.Then():
                    pixel = ((y * shape.width + x) * shape.groups + group) * depth
                    self._widen(to, pixel, depth, j * depth)
                with T.Else():
                    self._fill(to, depth, j * depth)

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
