"""Pooling over packed activations: windows clipped to the image, and the mean of whole planes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwprune.lower.cpu import emit
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, const, loop, tirx
from hwprune.lower.cpu.epilogue import Epilogue, Position, pack_channels
from hwprune.lower.formulas import supported
from hwprune.lower.spec import PACKED, PLAIN, Kernel, Workload
from hwprune.target import FLOAT16, FLOAT32

LOWEST = {FLOAT32: -3.4028234663852886e38, FLOAT16: -65504.0}
PARTIAL_SUMS = 4


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of max_pool2d, avg_pool2d or global_avg_pool on packed input, or None."""
    if workload.inputs[0].layout != PACKED or not supported(workload.epilogue):
        return None
    if workload.op == "global_avg_pool":
        if workload.output.layout == PLAIN and len(workload.inputs) > 1:
            return None
        body = _GlobalMean(workload, context).emit
    elif workload.op in ("max_pool2d", "avg_pool2d") and workload.output.layout == PACKED:
        body = _Window(workload, context).emit
    else:
        return None
    lanes = context.lanes
    shapes = tuple((emit.blocks(int(np.prod(p.shape)), lanes) * lanes,) for p in workload.params)
    func = emit.build_function(
        workload.op,
        emit.physical_inputs(workload, lanes),
        shapes,
        workload.output.physical(lanes),
        body,
    )

    def pack(params: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return tuple(pack_channels(p, lanes) for p in params)

    return Kernel(workload, func, f"cpu.{workload.op}", "one vector of channels a pixel", pack)


@dataclass(frozen=True)
class _Window:
    workload: Workload
    context: Context

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        lanes = self.context.lanes
        n_out, channels, height, width = self.workload.output.shape
        epilogue = Epilogue(self.workload, lanes, xs[1:], ps, first_param=0)
        extents = (n_out, emit.blocks(channels, lanes), height)
        total = int(np.prod(extents))
        with emit.split_threads(total, self.context.threads) as (first, count):
            acc = emit.local((lanes,), self._dtype)
            with loop(count) as i:
                n, block, row = emit.split_index(first + i, extents)
                with loop(width) as col:
                    area = self._window(n, block, row, col, xs[0], acc)
                    with T.vectorized(lanes) as lane:
                        at = Position(n, block, row, col, lane)
                        mean = emit.cast(self._finish(acc[lane], area), emit.real())
                        value = epilogue.apply(mean, at)
                        T.buffer_store(y, value, [n, block, row, col, lane])

    def _window(self, n: Expr, block: Expr, row: Expr, col: Expr, x: Buffer, acc: Buffer) -> Expr:
        """Reduce one window into `acc`; returns the number of values inside the image."""
        lanes, maximum = self.context.lanes, self._maximum
        bounds = [self._bounds(axis, at) for axis, at in ((0, row), (1, col))]
        (h0, h_low, h_high, dh), (w0, w_low, w_high, dw) = bounds
        start = LOWEST[self._dtype] if maximum else 0.0
        emit.store_vector(acc, [], lanes, lambda _: tirx.const(start, self._dtype))
        with T.serial(h_high - h_low) as i, T.serial(w_high - w_low) as j:
            with T.vectorized(lanes) as lane:
                value = x[n, block, h0 + (h_low + i) * dh, w0 + (w_low + j) * dw, lane]
                value = emit.cast(value, self._dtype)
                total = tirx.max(acc[lane], value) if maximum else acc[lane] + value
                T.buffer_store(acc, total, [lane])
        return (h_high - h_low) * (w_high - w_low)

    def _bounds(self, axis: int, at: Expr) -> tuple[Expr, Expr, Expr, int]:
        """Origin of a window, first and one past the last tap inside the image, dilation."""
        size = self.workload.inputs[0].shape[2 + axis]
        kernel, stride = self.workload.attr("kernel")[axis], self.workload.attr("stride")[axis]
        dilation = self.workload.attr("dilation")[axis] if self._has("dilation") else 1
        origin = at * stride - self.workload.attr("padding")[axis]
        low = tirx.max(0, (dilation - 1 - origin) // dilation)
        high = tirx.min(kernel, (size - 1 - origin) // dilation + 1)
        return origin, low, tirx.max(high, low), dilation

    def _finish(self, value: Expr, area: Expr) -> Expr:
        if self._maximum:
            return value
        kernel = self.workload.attr("kernel")
        divisor = self.workload.attr("divisor")
        if divisor or self.workload.attr("count_include_pad"):
            return value * tirx.const(1.0 / (divisor or kernel[0] * kernel[1]), FLOAT32)
        return value / tirx.Cast(FLOAT32, area)

    @property
    def _maximum(self) -> bool:
        return self.workload.op == "max_pool2d"

    @property
    def _dtype(self) -> str:
        """What a window is reduced in: sums in float32."""
        return emit.real() if self._maximum else FLOAT32

    def _has(self, name: str) -> bool:
        return any(key == name for key, _ in self.workload.attrs)


@dataclass(frozen=True)
class _GlobalMean:
    workload: Workload
    context: Context

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        lanes = self.context.lanes
        batch, channels, height, width = self.workload.inputs[0].shape
        epilogue = Epilogue(self.workload, lanes, xs[1:], ps, first_param=0)
        extents = (batch, emit.blocks(channels, lanes))
        packed = self.workload.output.layout == PACKED
        with emit.split_threads(extents[0] * extents[1], self.context.threads) as (first, count):
            acc = emit.local((PARTIAL_SUMS, lanes), FLOAT32)
            with loop(count) as i:
                n, block = emit.split_index(first + i, extents)
                self._sum(n, block, height * width, width, xs[0], acc)
                value = _mean(acc, height * width)
                if packed:
                    with T.vectorized(lanes) as lane:
                        at = Position(n, block, 0, 0, lane)
                        T.buffer_store(y, epilogue.apply(value(lane), at), [n, block, 0, 0, lane])
                else:
                    self._store_plain(n, block, channels, value, y, epilogue)

    def _sum(self, n: Expr, block: Expr, pixels: int, width: int, x: Buffer, acc: Buffer) -> None:
        """Partial sums hide the latency of the additions."""
        lanes = self.context.lanes

        def add(part: int, pixel: Expr) -> None:
            with T.vectorized(lanes) as lane:
                value = x[n, block, pixel // width, pixel % width, lane]
                total = acc[part, lane] + emit.cast(value, FLOAT32)
                T.buffer_store(acc, total, [part, lane])

        for part in range(PARTIAL_SUMS):
            emit.store_vector(acc, [part], lanes, lambda _: tirx.const(0.0, FLOAT32))
        whole = pixels // PARTIAL_SUMS
        if whole:
            with loop(whole) as j:
                for part in range(PARTIAL_SUMS):
                    add(part, j * PARTIAL_SUMS + part)
        for rest in range(whole * PARTIAL_SUMS, pixels):
            add(rest % PARTIAL_SUMS, rest)

    def _store_plain(
        self,
        n: Expr,
        block: Expr,
        channels: int,
        value: Callable[[Expr], Expr],
        y: Buffer,
        epilogue: Epilogue,
    ) -> None:
        lanes = self.context.lanes
        staged = T.alloc_buffer((lanes,), emit.real())
        emit.store_vector(staged, [], lanes, value)
        count = tirx.min(lanes, channels - block * lanes) if channels % lanes else lanes
        with T.serial(count) as lane:
            channel = block * lanes + lane
            result = epilogue.apply_flat(staged[lane], channel, lambda _: const(0.0))
            T.buffer_store(y, result, [n, channel])


def _mean(acc: Buffer, count: int) -> Callable[[Expr], Expr]:
    def value(lane: Expr) -> Expr:
        total = acc[0, lane]
        for part in range(1, PARTIAL_SUMS):
            total = total + acc[part, lane]
        return emit.cast(total * tirx.const(1.0 / count, FLOAT32), emit.real())

    return value
