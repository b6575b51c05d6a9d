"""Convolutions that are not depthwise, as a product of windows and filters without a copy of them.

A row of the product is an output pixel, a column an output channel; the reduction runs over taps
and the input channels within. A 1x1 convolution of stride 1 is a product of matrices.
"""

from __future__ import annotations

import numpy as np

from hwprune.lower.cuda import emit, gemm, tiles
from hwprune.lower.cuda.context import Context
from hwprune.lower.cuda.emit import Expr, Function
from hwprune.lower.cuda.epilogue import Epilogue, channel_params, pack_channels
from hwprune.lower.cuda.rows import Matrix, Window, Windows
from hwprune.lower.formulas import supported
from hwprune.lower.spec import ARITHMETIC, NHWC, PIXEL, Kernel, Workload, numpy_type


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a conv2d workload; None if it is not one of ours."""
    if workload.op != "conv2d" or workload.output.layout != NHWC:
        return None
    if not supported(workload.epilogue):
        return None
    plan = Plan(workload, context)
    filters = ((plan.groups, plan.cols, plan.chunks * plan.items), workload.inputs[0].dtype)
    params = [filters, *channel_params(workload, 1)]
    func = emit.build_function(workload, params, plan.write)
    rule = "cuda.conv2d_1x1" if plan.pointwise else "cuda.conv2d_implicit_gemm"
    rule += f"_{plan.arithmetic}"
    return Kernel(workload, func, rule, f"tile {plan.tile.text}", plan.pack)


class Plan:
    """The integers of a convolution."""

    def __init__(self, workload: Workload, context: Context) -> None:
        self.workload = workload
        source, weight = workload.inputs[0], workload.params[0]
        n, self.in_channels, height, width = source.shape
        self.out_channels, self.channels, kh, kw = weight.shape
        _, _, out_height, out_width = workload.output.shape
        top, left, *_ = workload.attr("padding")
        self.window = Window(
            height, width, out_height, out_width, (kh, kw), workload.attr("stride"),
            (top, left), workload.attr("dilation"),
        )  # fmt: skip
        self.plain = source.layout != NHWC
        self.groups = self.in_channels // self.channels
        self.rows = n * out_height * out_width
        self.items = tiles.CHUNK_BYTES // emit.ITEM_BYTES[source.dtype]
        self.cols = self.out_channels // self.groups
        self.depth = self.channels
        if self.groups == 1 and not self.plain:  # the pixel's padding meets weights of zero
            self.depth = -(-self.channels // PIXEL) * PIXEL
        if self.groups == 1:
            self.cols = -(-self.cols // PIXEL) * PIXEL
        self.chunks = -(-kh * kw * self.depth // self.items)
        self.arithmetic = arithmetic(workload)
        tensor = self.arithmetic != "float32"
        self.tile = tiles.choose(
            self.rows, self.cols, self.chunks, self.groups, tensor, context,
            gathered=not self.whole,
        )  # fmt: skip

    @property
    def whole(self) -> bool:
        """Whether a chunk of 16 bytes lies within a tap, aligned."""
        return not self.plain and self.depth % self.items == 0

    @property
    def pointwise(self) -> bool:
        """Whether the windows are the pixels."""
        w = self.window
        same = (w.height, w.width) == (w.out_height, w.out_width)
        one = w.kernel == w.stride == (1, 1)
        return same and one and w.padding == (0, 0) and self.groups == 1 and not self.plain

    def write(self, function: Function) -> None:
        """The kernel's body."""
        product = gemm.Product(
            self.rows, self.cols, self.chunks, self.groups, self.arithmetic, self.tile
        )
        params = function.params[1:]
        epilogue = Epilogue(self.workload, function.inputs[1:], params, axis=1)
        width = PIXEL if self.groups == 1 else emit.vector(self.cols, "float16")
        source = self._source(function)
        gemm.write(function, product, source, epilogue, self._locate, width)

    def _source(self, function: Function) -> gemm.Source:
        memory = function.inputs[0]
        pixel = -(-self.in_channels // PIXEL) * PIXEL
        count = self.tile.rows_of_thread
        if self.pointwise:
            return Matrix(memory, self.rows, pixel, pixel, self.tile.chunks, count)
        return Windows(
            memory, self.window, self.rows, self.depth, pixel, self.in_channels, self.plain,
            self.whole, self.tile.chunks, count,
        )  # fmt: skip

    def _locate(self, group: Expr, row: Expr, col: Expr) -> list[Expr]:
        w = self.window
        plane = w.out_height * w.out_width
        pixel = row % plane
        return [row // plane, group * self.cols + col, pixel // w.out_width, pixel % w.out_width]

    def pack(self, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Filters as (groups, columns, taps and channels, zeros to whole chunks)."""
        weight, *params = arrays
        dtype = numpy_type(self.workload.inputs[0].dtype)
        o, i, kh, kw = weight.shape
        rows = np.zeros((self.groups, self.cols, kh * kw, self.depth), np.float32)
        rows[:, : o // self.groups, :, :i] = weight.reshape(
            self.groups, o // self.groups, i, kh * kw
        ).transpose(0, 1, 3, 2)
        flat = rows.reshape(self.groups, self.cols, -1)
        flat = np.pad(flat, ((0, 0), (0, 0), (0, self.chunks * self.items - flat.shape[2])))
        return (flat.astype(dtype), *map(pack_channels, params))


def arithmetic(workload: Workload) -> str:
    """What a product is computed with: "float32" is CUDA cores, all else tensor cores."""
    return str(dict(workload.attrs).get(ARITHMETIC, workload.inputs[0].dtype))
