"""The integers of a convolution, and which input channels a block of outputs reads.

In: a conv2d `Workload`. Out: its `Geometry`, and the `Reduction` of every block of output channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprune.lower.cpu import emit
from hwprune.lower.cpu.emit import Expr, tirx
from hwprune.lower.spec import Workload


@dataclass(frozen=True)
class Geometry:
    """The integers of a convolution."""

    batch: int
    channels: int
    height: int
    width: int
    out_channels: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, left, bottom, right
    dilation: tuple[int, int]
    group_in: int  # input channels of one group
    groups: int

    @staticmethod
    def of(workload: Workload) -> Geometry:
        """Read a conv2d workload."""
        n, c, h, w = workload.inputs[0].shape
        _, o, oh, ow = workload.output.shape
        _, group_in, kh, kw = workload.params[0].shape
        pad, stride, dilation = (workload.attr(k) for k in ("padding", "stride", "dilation"))
        groups = c // group_in
        return Geometry(n, c, h, w, o, oh, ow, (kh, kw), stride, pad, dilation, group_in, groups)

    @property
    def pointwise(self) -> bool:
        """1x1, stride 1, no padding: a matrix product over the pixels."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and not any(self.padding)

    @property
    def read(self) -> tuple[int, int]:
        """Rows and columns of the bordered plane that some tap reads."""
        out, (sy, sx), (dy, dx) = (self.out_height, self.out_width), self.stride, self.dilation
        height = (out[0] - 1) * sy + (self.kernel[0] - 1) * dy + 1
        return height, (out[1] - 1) * sx + (self.kernel[1] - 1) * dx + 1


@dataclass(frozen=True)
class Reduction:
    """Which input channels a block of output channels reads: `extent` from `start(block)` on."""

    geometry: Geometry
    lanes: int
    step: int

    @property
    def padded(self) -> int:
        """Input channels rounded up to the step."""
        return -(-self.geometry.channels // self.step) * self.step

    @property
    def extent(self) -> int:
        """Channels read by each block of outputs, a multiple of the step."""
        g = self.geometry
        if g.groups == 1:
            return self.padded
        per_group = g.out_channels // g.groups
        widest = 0
        for block in range(emit.blocks(g.out_channels, self.lanes)):
            last = min((block + 1) * self.lanes, g.out_channels) - 1
            start = block * self.lanes // per_group * g.group_in // self.step * self.step
            widest = max(widest, (last // per_group + 1) * g.group_in - start)
        return min(-(-widest // self.step) * self.step, self.padded)

    def start(self, block: Expr) -> Expr:
        """First channel read by an output block (an int for an int)."""
        g = self.geometry
        if g.groups == 1:
            return 0
        per_group = g.out_channels // g.groups
        first = block * self.lanes // per_group * g.group_in // self.step * self.step
        limit = self.padded - self.extent
        return min(first, limit) if isinstance(block, int) else tirx.min(first, limit)
