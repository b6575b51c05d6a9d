"""int8 depthwise convolution on cores with dual multiply-accumulate: a channel at a time.

A channel's plane is widened into a scratch buffer, with its border of zero points; then its taps
are few enough to stay in registers. A channel is read whole before it is written, so the output may
lie where the input does (as in MCUNet's TinyEngine, Lin et al., arXiv:2007.10319).
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
    call,
    constant,
    i32,
    loop,
    run,
)
from hwprune.lower.mcu.scaling import Scaling, folded_bias, scaling_of
from hwprune.quantize.graph import Conv2d, IntegerTensor

OFFSET = 512  # int16: what a load of two words can add to an address


def is_depthwise(op: Conv2d) -> bool:
    """One channel in and out of every group."""
    return op.weight.shape[3] == 1 and op.groups == op.weight.shape[0]


def depthwise(op: Conv2d, x: IntegerTensor, y: IntegerTensor) -> CKernel:
    """A depthwise convolution of any kernel, stride, padding and dilation."""
    bias, bound = folded_bias(op, op.weight, x.zero_point)
    channels = x.shape[3]
    weights = np.ascontiguousarray(op.weight.reshape(channels, -1))
    scaling = scaling_of(op, y.zero_point, bound)
    plane = _Plane.of(op, x, y)
    if scaling.fast:  # accumulators hold twice their value: see hwprune_scale_twice
        bias = 2 * bias
    arguments = [
        Argument("x", "int8", prod(x.shape)),
        constant("cw", weights),
        constant("cb", bias),
        *scaling.arguments,
        Argument("s", "int16", plane.size, const=False),
        Argument("y", "int8", prod(y.shape), const=False),
    ]

    def body(**buffers: Buffer) -> None:
        _Body(op, plane, scaling, channels, y.shape[1:3], x.zero_point, buffers).emit()

    return CKernel(
        rule="mcu.depthwise",
        func=build_function(arguments, body),
        arguments=tuple(arguments),
        constants=(weights, bias, *scaling.constants.values()),
        scratch_bytes=2 * plane.size,
        in_place=x.shape == y.shape,
        macs=prod(y.shape[1:3]) * weights.size,
        weight_reads=weights.size,
    )


@dataclass(frozen=True)
class _Plane:
    """A channel with its border: `rows` of `pitch` int16; the image begins at (top, left)."""

    rows: int
    pitch: int
    top: int
    left: int
    image_rows: int  # of the image, as far as they are read
    image_columns: int
    image_width: int

    @staticmethod
    def of(op: Conv2d, x: IntegerTensor, y: IntegerTensor) -> _Plane:
        spans = [
            (out - 1) * s + (k - 1) * d + 1
            for out, s, k, d in zip(
                y.shape[1:3], op.stride, op.weight.shape[1:3], op.dilation, strict=True
            )
        ]
        top, left = op.padding[:2]
        columns = spans[1] + 1  # a pair of taps reads one beyond the last
        return _Plane(
            rows=spans[0],
            pitch=columns + columns % 2,
            top=top,
            left=left,
            image_rows=min(x.shape[1], spans[0] - top),
            image_columns=min(x.shape[2], spans[1] - left),
            image_width=x.shape[2],
        )

    @property
    def size(self) -> int:
        """int16 of the plane, in whole pairs of words."""
        return -(-(self.rows * self.pitch + 2) // 4) * 4


@dataclass(frozen=True)
class _Body:
    op: Conv2d
    plane: _Plane
    scaling: Scaling
    channels: int
    outputs: tuple[int, ...]  # height, width
    zero_point: int
    buffers: dict[str, Buffer]

    def emit(self) -> None:
        plane, channels = self.plane, self.channels
        run("fill", at(self.buffers["s"], 0), *map(i32, (self.zero_point, plane.size, 0, 1)))
        with loop(channels) as channel:
            if plane.image_rows > 0 and plane.image_columns > 0:
                run(
                    "plane",
                    at(self.buffers["s"], plane.top * plane.pitch + plane.left),
                    at(self.buffers["x"], channel),
                    i32(plane.image_rows),
                    i32(plane.image_columns),
                    i32(plane.image_width * channels),
                    i32(plane.pitch),
                    i32(channels),
                )
            run("barrier")
            taps = self._taps(channel)
            bias = bind(self.buffers["cb"][channel])
            constants = self.scaling.channel(self.buffers, channel)
            with loop(self.outputs[0]) as row:
                self._row(channel, row, taps, bias, constants)

    @property
    def _threes(self) -> bool:
        """Whether rows of three taps begin at whole words: at even columns of the plane.

        With a stride of 1 two neighbouring outputs are made together; a last one is at an even
        column.
        """
        op = self.op
        even = op.stride[1] == 1 or op.stride[1] % 2 == 0
        return op.weight.shape[2] == 3 and op.dilation[1] == 1 and even

    def _taps(self, channel: Expr) -> list[list[Expr]]:
        """Variables with the taps of every row: pairs, or (w0, w1) and (w1, w2)."""
        _, kh, kw, _ = self.op.weight.shape

        def tap(i: int, j: int) -> Expr:
            return i32(self.buffers["cw"][(channel * kh + i) * kw + j]) if j < kw else i32(0)

        if self.op.dilation[1] > 1:
            starts, width = range(kw), 1
        else:
            starts, width = (range(2) if self._threes else range(0, kw, 2)), 2

        def weights(i: int, j: int) -> Expr:
            if width == 1:
                return tap(i, j) * (2 if self.scaling.fast else 1)
            pair = call("pair", tap(i, j), tap(i, j + 1))
            return call("twice", pair) if self.scaling.fast else pair

        return [[bind(weights(i, j)) for j in starts] for i in range(kh)]

    def _row(
        self, channel: Expr, row: Expr, taps: list[list[Expr]], bias: Expr, constants: tuple
    ) -> None:
        width, y = self.outputs[1], self.buffers["y"]
        start = bind(row * (self.op.stride[0] * self.plane.pitch))
        out = bind(row * (width * self.channels) + channel)

        def store(column: Expr, acc: Expr) -> None:
            value = self.scaling.value(acc, constants, twice=self.scaling.fast)
            T.buffer_store(y, value, [out + column * self.channels])

        single, apart = width, self.op.stride[1]
        if self._threes and apart <= 2 and width > 1:
            with loop(width // 2) as pair:
                acc = emit.accumulators(2)
                for c in range(2):
                    T.buffer_store(acc, bias, [c])
                for i, (first, last) in enumerate(taps):
                    function = "row3x2" if apart == 1 else "row3x2_apart"
                    self._row3(function, acc, start + pair * (2 * apart), i, first, last)
                for c in range(2):
                    store(pair * 2 + c, acc[c])
            single = width % 2
        if single:
            with loop(single) as column:
                column = column + (width - single)
                acc = emit.accumulators(1)
                T.buffer_store(acc, bias, [0])
                self._single(acc, start + column * self.op.stride[1], taps)
                store(column, acc[0])

    def _row3(self, function: str, acc: Buffer, x: Expr, i: int, first: Expr, last: Expr) -> None:
        """Row i of three taps; its distance is part of the load where it fits."""
        offset = i * self.op.dilation[0] * self.plane.pitch
        if offset >= OFFSET:
            x, offset = x + offset, 0
        run(function, at(acc, 0), at(self.buffers["s"], x), i32(offset), first, last)

    def _single(self, acc: Buffer, start: Expr, taps: list[list[Expr]]) -> None:
        """One output."""
        s, (dy, dx) = self.buffers["s"], self.op.dilation
        for i, row in enumerate(taps):
            x = start + i * dy * self.plane.pitch
            if self._threes:
                self._row3("row3", acc, start, i, *row)
                continue
            for j, weights in enumerate(row):
                if dx > 1:
                    value = acc[0] + i32(s[x + j * dx]) * weights
                else:
                    pair = call("load32", at(s, x + 2 * j))
                    value = call("smlad", pair, weights, acc[0])
                T.buffer_store(acc, value, [0])
