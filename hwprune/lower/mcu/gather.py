"""What an output position reads, copied side by side as int8; zero points outside the image."""

from __future__ import annotations

from dataclasses import dataclass

from hwprune.lower.mcu.conv import Shape
from hwprune.lower.mcu.emit import Buffer, Expr, T, at, bind, i32, loop, run, tirx


@dataclass(frozen=True)
class Gather:
    """Copies from buffer `x` of a shape to the scratch buffer `s`."""

    shape: Shape
    zero_point: int
    buffers: dict[str, Buffer]

    def emit(self, position: Expr, to: Expr, group: Expr = 0) -> None:
        """Copy what one output position reads of a group of channels, from s[to] on."""
        shape, x, s = self.shape, self.buffers["x"], self.buffers["s"]
        if shape.pointwise:
            pixel = (position * shape.groups + group) * shape.depth
            run("copy", at(s, to), at(x, pixel), i32(shape.depth))
            return
        row = bind(T.floordiv(position, shape.out_width) * shape.stride[0] - shape.padding[0])
        left = bind(T.floormod(position, shape.out_width) * shape.stride[1] - shape.padding[1])
        size = shape.kernel[1] * shape.depth
        with loop(shape.kernel[0]) as i:
            y = bind(row + i * shape.dilation[0])
            start = bind(to + i * size)
            with T.If(tirx.all(y >= 0, y < shape.height)):
                with T.Then():
                    self._row(start, y, left, group)
                with T.Else():
                    run("set", at(s, start), i32(self.zero_point), i32(size))

    def _row(self, to: Expr, y: Expr, left: Expr, group: Expr) -> None:
        shape, depth, taps = self.shape, self.shape.depth, self.shape.kernel[1]
        x, s, zero = self.buffers["x"], self.buffers["s"], i32(self.zero_point)
        if shape.contiguous:
            low = bind(tirx.max(i32(0), tirx.min(i32(taps), 0 - left)))
            high = bind(tirx.max(low, tirx.min(i32(taps), shape.width - left)))
            pixel = (y * shape.width + left + low) * depth
            run("set", at(s, to), zero, low * depth)
            run("copy", at(s, to + low * depth), at(x, pixel), (high - low) * depth)
            run("set", at(s, to + high * depth), zero, (taps - high) * depth)
            return
        for j in range(taps):
            column = bind(left + j * shape.dilation[1])
            with T.If(tirx.all(column >= 0, column < shape.width)):
                with T.Then():
                    pixel = ((y * shape.width + column) * shape.groups + group) * depth
                    run("copy", at(s, to + j * depth), at(x, pixel), i32(depth))
                with T.Else():
                    run("set", at(s, to + j * depth), zero, i32(depth))
