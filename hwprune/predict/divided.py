"""Work of convolutions by TVM's own Arm templates: register tiles that divide the sizes.

In: a `ConvShape`, its algorithm, a `Machine`. Out: `Work`. These are the schedules of published
tables of tuned kernels (`spatial_pack`, `winograd`, `depthwise` of TVM's `topi.arm_cpu`): channels
in vectors, a tile of rows and columns in registers, patches gathered first, and each of these sizes
a divisor of the whole. A plane of 17 x 17 therefore has poor tiles, which is most of what a model
proportional to multiply-accumulates gets wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from hwprune.predict.conv_shape import ConvShape
from hwprune.predict.machine import Machine
from hwprune.predict.work import DEPTHWISE, DIRECT, WINOGRAD, Work, blocks, imbalance

MOST_CHANNELS, MOST_ROWS, MOST_COLUMNS = 64, 8, 32  # of a register tile
OVERLAP = 0.25  # of the shorter of multiply-adds and loads that the longer does not hide
WRITE_BACK = 3.0  # cycles to start and store a vector of sums
SCRATCH = 4  # registers that hold weights and inputs
TILE = 4  # outputs of a Winograd tile along each axis, in TVM's template for Arm
SPREAD = (TILE + 2) ** 2  # products per tile and pair of channels


@dataclass(frozen=True)
class Divided:
    """A register tile per multiply-accumulate: vectors multiplied and loaded, busiest thread."""

    multiply: float
    load: float


def divided_work(shape: ConvShape, algorithm: str, machine: Machine) -> Work:
    """The counts of a convolution in TVM's own templates."""
    if algorithm == WINOGRAD:
        return _winograd(shape, machine)
    if algorithm == DEPTHWISE or shape.groups > 1:
        return _depthwise(shape, machine)
    tile = divisors_tile(
        shape.out_channels,
        shape.out_height,
        shape.out_width,
        shape.group_channels * shape.taps,
        machine,
    )
    each = shape.macs / machine.threads
    return Work(
        DIRECT,
        each * tile.multiply,
        each * tile.load,
        shape.output_size * shape.channels / machine.lanes / machine.threads,
        max(shape.patch_size - shape.input_size, 0) if shape.taps > 1 else 0,
        shape.tensor_bytes,
        shape.weight_bytes,
        shape.traits(DIRECT, tile.load),
    )


@lru_cache(maxsize=8192)
def divisors_tile(
    out_channels: int, height: int, width: int, depth: int, machine: Machine
) -> Divided:
    """The tile of divisors that takes the fewest cycles, of those that the registers hold.

    `depth`: multiply-adds into one sum. A tile's channels are shared out to the threads, so that
    few tiles of many channels leave some idle.
    """
    best: tuple[float, Divided] | None = None
    for channels in _divisors(out_channels, MOST_CHANNELS):
        vectors = blocks(channels, machine.lanes)
        uneven = imbalance(out_channels // channels, machine.threads)
        for rows in _divisors(height, MOST_ROWS):
            for columns in _divisors(width, MOST_COLUMNS):
                sums, pixels = vectors * rows * columns, rows * columns
                if sums + min(vectors + 1, SCRATCH) > machine.registers:
                    continue
                loads = vectors + pixels
                limits = sums / machine.fma_per_cycle, loads / machine.loads_per_cycle
                cycles = max(limits) + OVERLAP * min(limits) + WRITE_BACK * sums / depth
                size = channels * pixels
                tile = Divided(uneven * sums / size, uneven * loads / size)
                if best is None or uneven * cycles / size < best[0] - 1e-12:
                    best = (uneven * cycles / size, tile)
    assert best is not None  # one output always fits
    return best[1]


def _divisors(extent: int, most: int) -> list[int]:
    return [d for d in range(1, min(extent, most) + 1) if extent % d == 0]


def _winograd(shape: ConvShape, machine: Machine) -> Work:
    """Products of transformed tiles, and the transforms of inputs and outputs."""
    count = shape.batch * blocks(shape.out_height, TILE) * blocks(shape.out_width, TILE)
    tile = divisors_tile(shape.out_channels, 1, count, shape.channels, machine)
    each = SPREAD * count * shape.channels * shape.out_channels / machine.threads
    return Work(
        WINOGRAD,
        each * tile.multiply,
        each * tile.load,
        0.0,
        SPREAD * count * (shape.channels + shape.out_channels),
        shape.tensor_bytes,
        shape.weight_bytes * SPREAD / shape.taps,
        shape.traits(WINOGRAD, tile.load),
    )


def _depthwise(shape: ConvShape, machine: Machine) -> Work:
    """Few multiply-adds per element: what is read, written and bordered counts."""
    uneven = imbalance(blocks(shape.channels, machine.lanes), machine.threads)
    vectors = shape.macs * uneven / machine.lanes / machine.threads
    return Work(
        DEPTHWISE,
        vectors,
        vectors * shape.stride / 2,
        0.0,
        shape.input_size,
        shape.tensor_bytes,
        shape.weight_bytes,
        shape.traits(DEPTHWISE, 1.0),
    )
