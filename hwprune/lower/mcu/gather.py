"""What an output position reads, copied side by side as int8; zero points outside the image."""

from __future__ import annotations

from dataclasses import dataclass

from hwprune.lower.mcu.emit import Buffer, Expr, T, at, bind, i32, loop, run, tirx
from hwprune.lower.mcu.window import Shape, emit_row


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
        x, s, zero = self.buffers["x"], self.buffers["s"], i32(self.zero_point)

        def copy(k: Expr, pixel: Expr, count: Expr) -> None:
            run("copy", at(s, to + k), at(x, pixel), i32(count))

        def fill(k: Expr, count: Expr) -> None:
            run("set", at(s, to + k), zero, i32(count))

        emit_row(self.shape, y, left, group, copy, fill)
