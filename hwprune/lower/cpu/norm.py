"""Layer norm over the last axis: of rows, and of the pixels of a packed image.

Mean, then variance of the differences, then the result: the row stays in the nearest cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from hwprune.lower.cpu import emit, rows
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, const, loop, tirx
from hwprune.lower.cpu.epilogue import pack_channels
from hwprune.lower.spec import LAST, PLAIN, Kernel, Step, Workload


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a layer_norm workload (with or without bias), or None."""
    if workload.op != "layer_norm" or workload.epilogue not in ((), (Step("bias"),)):
        return None
    layouts = {t.layout for t in (*workload.inputs, workload.output)}
    if layouts not in ({PLAIN}, {LAST}):
        return None
    lanes = context.lanes
    body: _Rows | _Pixels = (_Rows if layouts == {PLAIN} else _Pixels)(workload, context)
    shapes = tuple((emit.blocks(prod(p.shape), lanes) * lanes,) for p in workload.params)
    func = emit.build_function(
        "layer_norm",
        emit.physical_inputs(workload, lanes),
        shapes,
        workload.output.physical(lanes),
        body.emit,
    )

    def pack(params: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return tuple(pack_channels(p, lanes) for p in params)

    return Kernel(workload, func, "cpu.layer_norm", body.reason, pack)


@dataclass(frozen=True)
class _Rows:
    """Row after row of a row-major tensor."""

    workload: Workload
    context: Context
    reason = "a row at a time"

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        *outer, size = self.workload.output.shape
        eps = self.workload.attr("eps")
        with emit.split_threads(prod(outer), self.context.threads) as (first, count):
            with loop(count) as i:
                at = emit.split_index(first + i, tuple(outer)) if outer else []
                row = rows.Row(xs[0], tuple(at), size, self.context.lanes)
                mean = rows.local(rows.reduce(row, lambda x: x) * const(1 / size))
                centred = rows.reduce(row, lambda x: (x - mean[0]) * (x - mean[0]))
                scale = rows.local(const(1.0) / tirx.sqrt(centred * const(1 / size) + const(eps)))

                def element(j: Expr) -> Expr:
                    value = (xs[0][(*at, j)] - mean[0]) * scale[0] * ps[0][j]
                    return value + ps[1][j] if len(ps) > 1 else value

                rows.each(
                    size, self.context.lanes, lambda j: T.buffer_store(y, element(j), [*at, j])
                )


@dataclass(frozen=True)
class _Pixels:
    """A row of pixels at a time: sums of all its pixels side by side, then their lanes."""

    workload: Workload
    context: Context
    reason = "a row of pixels at a time"

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        n_out, channels, height, width = self.workload.output.image
        lanes, x = self.context.lanes, xs[0]
        with emit.split_threads(n_out * height, self.context.threads) as (first, count):
            sums = T.alloc_buffer((width, lanes), "float32")
            mean, scale = (T.alloc_buffer((width,), "float32") for _ in range(2))
            with loop(count) as i:
                n, row = emit.split_index(first + i, (n_out, height))
                self._total(n, row, x, sums, None)
                self._finish(sums, mean, lambda total: total * const(1 / channels))
                self._total(n, row, x, sums, mean)
                eps = const(self.workload.attr("eps"))
                self._finish(
                    sums,
                    scale,
                    lambda total: const(1.0) / tirx.sqrt(total * const(1 / channels) + eps),
                )
                with loop(emit.blocks(channels, lanes)) as block, loop(width) as col:
                    with T.vectorized(lanes) as lane:
                        at = [n, block, row, col, lane]
                        value = (
                            (x[tuple(at)] - mean[col]) * scale[col] * ps[0][block * lanes + lane]
                        )
                        if len(ps) > 1:
                            value = value + ps[1][block * lanes + lane]
                        T.buffer_store(y, value, at)

    def _total(self, n: Expr, row: Expr, x: Buffer, sums: Buffer, mean: Buffer | None) -> None:
        """Sums of the values, or of squared differences from the mean, by pixel and lane."""
        lanes = self.context.lanes
        _, channels, _, width = self.workload.output.image

        def add(block: Expr, tail: bool, start: bool) -> None:
            with loop(width) as col, T.vectorized(lanes) as lane:
                value = x[n, block, row, col, lane]
                if mean is not None:
                    value = (value - mean[col]) * (value - mean[col])
                if tail:
                    value = tirx.Select(lane < channels % lanes, value, const(0.0))
                total = value if start else sums[col, lane] + value
                T.buffer_store(sums, total, [col, lane])

        whole = channels // lanes
        add(0, whole == 0, True)
        if whole > 1:
            with T.serial(whole - 1) as block:
                add(block + 1, False, False)
        if whole and channels % lanes:
            add(whole, True, False)

    def _finish(self, sums: Buffer, result: Buffer, value: rows.Function) -> None:
        with loop(self.workload.output.image[3]) as col:
            T.buffer_store(result, value(rows.across(sums, (col,), self.context.lanes)), [col])
