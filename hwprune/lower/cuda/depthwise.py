"""Depthwise convolutions: a thread makes a strip of pixels of one vector of channels.

Each column of a row of the strip's window is loaded once and used by every pixel that it reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hwprune.lower.cuda import emit
from hwprune.lower.cuda.context import Context
from hwprune.lower.cuda.emit import THREADS, Expr, Function, T, const, tirx
from hwprune.lower.cuda.epilogue import Epilogue, channel_params, pack_channels
from hwprune.lower.formulas import supported
from hwprune.lower.spec import NHWC, PIXEL, Kernel, Workload, numpy_type

STRIP = 4  # pixels of a thread at most


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a depthwise conv2d workload; None if it is not one."""
    if workload.op != "conv2d" or not supported(workload.epilogue):
        return None
    source, weight = workload.inputs[0], workload.params[0]
    channels = source.shape[1]
    if source.layout != NHWC or weight.shape[:2] != (channels, 1) or channels == 1:
        return None
    if workload.output.shape[1] != channels:
        return None
    plan = _Plan(workload)
    params = [(plan.packed, weight.dtype), *channel_params(workload, 1)]
    func = emit.build_function(workload, params, plan.write)
    reason = f"strip of {plan.strip} pixels x {plan.lanes} channels"
    return Kernel(workload, func, "cuda.depthwise", reason, plan.pack)


class _Plan:
    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        source, output = workload.inputs[0], workload.output
        self.batch, self.height, self.width, self.pixel = source.physical(1)
        _, _, self.out_height, self.out_width = output.shape
        self.kh, self.kw = workload.params[0].shape[2:]
        self.stride, self.dilation = workload.attr("stride"), workload.attr("dilation")
        self.top, self.left = workload.attr("padding")[:2]
        self.lanes = PIXEL if emit.ITEM_BYTES[source.dtype] == 2 else PIXEL // 2
        self.strip = min(STRIP, self.out_width)
        self.packed = (self.kh * self.kw, self.pixel)

    def write(self, function: Function) -> None:
        """A thread a strip and a vector of channels; neighbours have neighbouring channels."""
        strips, vectors = -(-self.out_width // self.strip), self.pixel // self.lanes
        extents = (self.batch, self.out_height, strips, vectors)
        total = int(np.prod(extents))
        with function.launch(-(-total // THREADS), THREADS) as (block, _, thread):
            index = block * THREADS + thread
            with T.If(index < total), T.Then():
                n, y, strip, v = emit.split_index(index, extents)
                self._strip(function, n, y, strip * self.strip, v * self.lanes)

    def _strip(self, function: Function, n: Expr, y: Expr, x: Expr, channel: Expr) -> None:
        acc = emit.registers(self.strip * self.lanes)
        with T.unroll(self.strip * self.lanes) as i:
            T.buffer_store(acc, const(0.0), [i])
        with T.serial(self.kh) as dy:
            self._row(function, acc, n, y * self.stride[0] - self.top + dy * self.dilation[0],
                      x * self.stride[1] - self.left, channel, dy)  # fmt: skip
        epilogue = Epilogue(self.workload, function.inputs[1:], function.params[1:], axis=1)
        for p in range(self.strip):

            def value(e: Expr, p: int = p) -> Expr:
                return acc[p * self.lanes + e]

            at = [n, channel, y, x + p]
            if self.out_width % self.strip == 0:
                epilogue.store(function.output, at, self.lanes, value)
            else:
                with T.If(x + p < self.out_width), T.Then():
                    epilogue.store(function.output, at, self.lanes, value)

    def _row(
        self, function: Function, acc: emit.Buffer, n: Expr, row: Expr, left: Expr, channel: Expr,
        dy: Expr,
    ) -> None:  # fmt: skip
        """Add a row of the window to every pixel of the strip."""
        source, weight = function.inputs[0], function.params[0]
        taps = [
            weight.load_vector((dy * self.kw + dx) * self.pixel + channel, self.lanes)
            for dx in range(self.kw)
        ]
        reach = (self.strip - 1) * self.stride[1] + (self.kw - 1) * self.dilation[1] + 1
        for column in range(reach):
            users = self._users(column)
            if not users:
                continue
            x = left + column
            there = tirx.all(row >= 0, row < self.height, x >= 0, x < self.width)
            start = ((n * self.height + row) * self.width + x) * self.pixel + channel
            values = source.load_vector(tirx.Select(there, start, 0), self.lanes, there)
            for pixel, dx in users:
                self._add(acc, pixel, values, taps[dx])

    def _users(self, column: int) -> Sequence[tuple[int, int]]:
        """(pixel of the strip, tap) that read a column of the strip's window."""
        return [
            (p, dx)
            for p in range(self.strip)
            for dx in range(self.kw)
            if p * self.stride[1] + dx * self.dilation[1] == column
        ]

    def _add(
        self, acc: emit.Buffer, pixel: int, x: Callable[..., Expr], w: Callable[..., Expr]
    ) -> None:
        with T.unroll(self.lanes) as e:
            i = pixel * self.lanes + e
            T.buffer_store(acc, acc[i] + x(e) * w(e), [i])

    def pack(self, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Filters as (taps, channels), zeros to whole pixels."""
        weight, *params = arrays
        taps = weight.reshape(weight.shape[0], -1).T
        taps = np.pad(taps, ((0, 0), (0, self.pixel - taps.shape[1])))
        dtype = numpy_type(self.workload.params[0].dtype)
        return (np.ascontiguousarray(taps).astype(dtype), *map(pack_channels, params))
