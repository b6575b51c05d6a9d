"""`ConvShape`: the integers of a two-dimensional convolution, whoever runs it.

In: a conv2d `Workload`, or the columns of a table of measured convolutions. Out: a `ConvShape`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from hwprune.predict.work import ALGORITHMS, DEPTHWISE

BYTES = 4  # of float32


@dataclass(frozen=True)
class ConvShape:
    """Batch, channels, sizes in elements, one stride for both axes."""

    batch: int
    channels: int
    out_channels: int
    in_height: int  # with its border
    in_width: int
    out_height: int
    out_width: int
    kernel_height: int
    kernel_width: int
    stride: int
    groups: int = 1

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return self.kernel_height * self.kernel_width

    @property
    def group_channels(self) -> int:
        """Input channels that an output reads."""
        return self.channels // self.groups

    @property
    def pixels(self) -> int:
        """Output positions of all images."""
        return self.batch * self.out_height * self.out_width

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the direct algorithm."""
        return self.pixels * self.out_channels * self.group_channels * self.taps

    @property
    def depthwise(self) -> bool:
        """Every output channel reads one input channel."""
        return self.groups > 1 and self.group_channels == 1

    @property
    def input_size(self) -> int:
        """Elements of the input, with its border."""
        return self.batch * self.channels * self.in_height * self.in_width

    @property
    def output_size(self) -> int:
        """Elements of the output."""
        return self.pixels * self.out_channels

    @property
    def patch_size(self) -> int:
        """Elements of all patches that the kernel sees, each tap by itself."""
        return self.pixels * self.taps * self.channels

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, as they are."""
        return BYTES * self.out_channels * self.group_channels * self.taps

    @property
    def tensor_bytes(self) -> tuple[float, ...]:
        """Bytes of the input and of the output."""
        return BYTES * self.input_size, BYTES * self.output_size

    def traits(self, algorithm: str, loads_per_mac: float) -> tuple[float, ...]:
        """Coordinates in which convolutions that lie near are off by about the same factor.

        Logarithms of the sizes, and of the loads that the register tile needs: a unit is a factor
        of two. Algorithms lie apart.
        """
        apart = 8.0 * ALGORITHMS.index(algorithm)
        tile = 0.0 if algorithm == DEPTHWISE else 4 * log2(max(loads_per_mac, 1e-6))
        return (
            log2(self.group_channels),
            log2(self.out_channels),
            log2(self.out_height * self.out_width),
            log2(self.taps),
            2.0 * (self.stride - 1),
            2.0 * (self.kernel_height != self.kernel_width),
            tile,
            apart,
        )
