"""The windows of a convolution: its integers, and where a row of a window meets the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwprune.float_graph import FloatConv2d
from hwprune.lower.mcu import matmul
from hwprune.lower.mcu.emit import Expr, T, bind, i32, tirx
from hwprune.quantize.graph import Conv2d, IntegerTensor


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


def emit_row(
    shape: Shape,
    y: Expr,
    left: Expr,
    group: Expr,
    copy: Callable[[Expr, Expr, Expr], None],
    fill: Callable[[Expr, Expr], None],
) -> None:
    """What row y of the image has under a row of the kernel that begins at column `left`.

    `copy(k, pixel, count)`: elements k to k + count of the row are those from element `pixel` of
    the image on. `fill(k, count)`: they lie outside the image.
    """
    depth, taps = shape.depth, shape.kernel[1]
    if shape.contiguous:
        low = bind(tirx.max(i32(0), tirx.min(i32(taps), 0 - left)))
        high = bind(tirx.max(low, tirx.min(i32(taps), shape.width - left)))
        pixel = (y * shape.width + left + low) * depth
        fill(0, low * depth)
        copy(low * depth, pixel, (high - low) * depth)
        fill(high * depth, (taps - high) * depth)
        return
    for j in range(taps):
        column = bind(left + j * shape.dilation[1])
        with T.If(tirx.all(column >= 0, column < shape.width)):
            with T.Then():
                pixel = ((y * shape.width + column) * shape.groups + group) * depth
                copy(j * depth, pixel, depth)
            with T.Else():
                fill(j * depth, depth)
