"""int8 depthwise convolution on cores with Helium: sixteen channels of a position at a time.

Products of bytes are summed in int16 by twos, which cannot overflow where no weight is -128, and
then in int32. Even and odd lanes stay apart (VMULLB, VMULLT; Arm DDI 0553), so constants lie in the
order that this leaves. Positions whose window leaves the image read a copy with zero points around.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

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
from hwprune.quantize.graph import INT8_MIN, Conv2d, IntegerTensor

LANES = 16
# The channel of every int32 lane: bottom and top halves of the even lanes, then of the odd ones.
ORDER = np.arange(LANES).reshape(4, 4).T[[0, 2, 1, 3]].reshape(-1)


def takes(op: Conv2d) -> bool:
    """Whether sums of two products fit int16, and more than half a vector is used."""
    return bool((op.weight > INT8_MIN).all()) and len(op.weight) > LANES // 2


def depthwise(op: Conv2d, x: IntegerTensor, y: IntegerTensor) -> CKernel:
    """A depthwise convolution of any kernel, stride, padding and dilation."""
    bias, bound = folded_bias(op, op.weight, x.zero_point)
    shape = replace(Shape.of(op, x, y), depth=x.shape[3], groups=1)
    scaling = scaling_of(op, y.zero_point, bound)
    weights = _blocks(op.weight.reshape(shape.depth, -1)).transpose(0, 2, 1)  # (block, tap, lane)
    constants = (
        np.ascontiguousarray(weights),
        *(
            _blocks(array.astype(np.int32))[:, ORDER]
            for array in (bias, scaling.multiplier, scaling.shift)
        ),
    )
    taps = prod(shape.kernel)
    arguments = [
        Argument("x", "int8", prod(x.shape)),
        *map(constant, ("cw", "cb", "cm", "cs"), constants),
        Argument("s", "int8", taps * shape.depth, const=False),
        Argument("y", "int8", prod(y.shape), const=False),
    ]

    def body(**buffers: Buffer) -> None:
        _Body(shape, scaling, x.zero_point, buffers).emit()

    return CKernel(
        rule="mcu.helium.depthwise",
        func=build_function(arguments, body),
        arguments=tuple(arguments),
        constants=tuple(array.reshape(-1) for array in constants),
        scratch_bytes=taps * shape.depth,
        macs=shape.positions * op.weight.size,
        weight_reads=shape.positions * weights.size,
    )


def _blocks(array: np.ndarray) -> np.ndarray:
    """(C, …) in whole vectors of channels, (blocks, LANES, …); zeros past the last channel."""
    more = -len(array) % LANES
    padded = np.pad(array, [(0, more), *[(0, 0)] * (array.ndim - 1)])
    return padded.reshape(-1, LANES, *array.shape[1:])


@dataclass(frozen=True)
class _Body:
    shape: Shape
    scaling: Scaling
    zero_point: int
    buffers: dict[str, Buffer]

    def emit(self) -> None:
        shape = self.shape
        with loop(shape.positions // shape.out_width) as row, loop(shape.out_width) as column:
            top = bind(row * shape.stride[0] - shape.padding[0])
            left = bind(column * shape.stride[1] - shape.padding[1])
            within = tirx.all(*shape.within(top, left))
            inside = bind(tirx.Select(within, i32(1), i32(0)))
            position = row * shape.out_width + column
            with T.If(inside == 0), T.Then():
                Gather(shape, self.zero_point, self.buffers).emit(position, 0)
                run("barrier")
            pixel = tirx.Select(inside != 0, (top * shape.width + left) * shape.depth, i32(0))
            self._position(position * shape.depth, bind(pixel), inside)

    def _position(self, out: Expr, pixel: Expr, inside: Expr) -> None:
        """All channels of a position, read where they lie or from their copy."""
        shape, b = self.shape, self.buffers
        kh, kw = shape.kernel
        image = shape.dilation[0] * shape.width * shape.depth, shape.dilation[1] * shape.depth
        copy = kw * shape.depth, shape.depth
        run(
            "depthwise",
            at(b["y"], out),
            at(b["x"], pixel),
            at(b["s"], 0),
            inside,
            *(at(b[name], 0) for name in ("cw", "cb", "cm", "cs")),
            *map(i32, (*image, *copy, kh, kw, shape.depth)),
            *map(i32, (int(not self.scaling.fast), self.scaling.zero_point, *self.scaling.clamp)),
        )
