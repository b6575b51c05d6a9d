"""Work of convolutions by TVM's own CUDA templates: tiles whose sizes divide the layer's.

In: a `ConvShape`, its algorithm, a `Gpu`. Out: `GpuWork`. These are the schedules of published
tables of tuned kernels (`conv2d_nchw.cuda`, `conv2d_nchw_winograd.cuda`, `depthwise_conv2d_nchw` of
TVM's topi): a block makes a box of channels, rows and columns, a thread a part of it in registers,
operands go through shared memory, and each of these sizes is a divisor of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd, prod

import numpy as np

from hwprune.gpu import WARP, Gpu
from hwprune.predict.conv_shape import BYTES, ConvShape
from hwprune.predict.gpu_work import (
    DEPTHWISE,
    DIRECT,
    SHARED_BYTES_PER_CYCLE,
    WINOGRAD,
    GpuWork,
    lanes,
    warps,
)
from hwprune.predict.work import blocks

MOST_CHANNELS, MOST_PIXELS, MOST_ROWS, MOST_COLUMNS = 256, 512, 64, 256  # of a block
MOST_EACH, MOST_SIDE = 32, 8  # pixels of a thread, and along an axis
MOST_THREADS = 1024
SPARE_REGISTERS = 24  # beside sums and operands
DEPTHS = (1, 2, 4, 8, 16, 32)  # channels of operands in shared memory at a time
FULL_WARPS = 8.0  # of a multiprocessor that issues every cycle
WEIGHTS = 2.0  # of a thread that are read at a time
HIDDEN = 0.3  # of a pipe beside the busiest, when tiles are compared
STEP = 200.0  # cycles of a round trip, likewise


@dataclass(frozen=True)
class Tiled:
    """The best tile of a layer: counts of `GpuWork`, and its loads for each multiply-add."""

    multiply_cycles: float
    shared_bytes: float
    level2_bytes: float
    steps: float
    loads: float


def gpu_divided_work(shape: ConvShape, algorithm: str, gpu: Gpu) -> GpuWork:
    """The counts of a convolution in TVM's own templates."""
    if algorithm == WINOGRAD:
        return _winograd(shape, gpu)
    if algorithm == DEPTHWISE or shape.groups > 1:
        return _depthwise(shape, gpu)
    kernel = (shape.kernel_height, shape.kernel_width)
    tile = best_tile(
        shape.out_channels, (shape.out_height, shape.out_width), shape.group_channels,
        kernel, shape.stride, shape.batch, gpu,
    )  # fmt: skip
    return GpuWork(
        DIRECT,
        tile.multiply_cycles,
        tile.shared_bytes,
        tile.level2_bytes,
        sum(shape.tensor_bytes) + shape.weight_bytes,
        tile.steps,
        1,
        _traits(shape, DIRECT, tile.loads),
    )


@lru_cache(maxsize=8192)
def best_tile(
    out_channels: int, plane: tuple[int, int], channels: int, kernel: tuple[int, int], stride: int,
    products: int, gpu: Gpu,
) -> Tiled:  # fmt: skip
    """The tile of divisors that takes the fewest cycles, of those that fit a multiprocessor.

    `channels` times the kernel's positions are summed into each output, in each of `products`.
    """
    taps = prod(kernel)
    made, pixels, own, own_pixels, patch, reads = _boxes(out_channels, plane, kernel, stride)
    at_a_time = np.array([d for d in DEPTHS if channels % d == 0])[:, None]
    threads = made * pixels / (own * own_pixels)
    registers = own * own_pixels + own + own_pixels + SPARE_REGISTERS
    staged = BYTES * at_a_time * (made * taps + patch)
    held = np.minimum(gpu.threads_per_sm // threads, gpu.blocks_per_sm)
    held = np.minimum(held, gpu.registers_per_sm // (threads * registers))
    held = np.minimum(held, gpu.shared_bytes_per_sm // staged)
    fits = (threads <= MOST_THREADS) & (held >= 1) & (staged <= gpu.shared_bytes_per_block)
    held = np.maximum(held, 1)
    count = products * (out_channels // made) * (prod(plane) // pixels)
    each = np.ceil(count / gpu.sms)  # blocks of the multiprocessor that has most
    in_warps = warps(threads)
    issuing = np.minimum(np.minimum(held, each) * in_warps / FULL_WARPS, 1.0)
    issued = each * in_warps * WARP * channels * taps
    multiply = issued * own * own_pixels / lanes(gpu) / issuing
    shared = BYTES * issued * (own / WEIGHTS + reads * min(stride, 2))
    level2 = BYTES * count * channels * (made * taps + patch)
    steps = np.ceil(each / held) * channels / at_a_time
    ratio = (own + reads) / (own * own_pixels)
    pipes = np.stack(
        np.broadcast_arrays(
            multiply, shared / SHARED_BYTES_PER_CYCLE, level2 / gpu.l2_bytes_per_s * gpu.clock_hz
        )
    )
    busiest = pipes.max(axis=0)
    cost = busiest + HIDDEN * (pipes.sum(axis=0) - busiest) + STEP * steps
    at = int(np.where(fits, cost, np.inf).argmin())
    found = np.broadcast_arrays(multiply, shared, level2, steps, ratio)
    return Tiled(*(float(values.flat[at]) for values in found))


@lru_cache(maxsize=1024)
def _boxes(
    out_channels: int, plane: tuple[int, int], kernel: tuple[int, int], stride: int
) -> np.ndarray:
    """(6, tiles): channels, pixels of a block; of a thread; inputs of a block; loads of a thread.

    Four inputs that lie side by side are one load.
    """
    height, width = plane
    boxes: dict[tuple[int, int, int, float], None] = {}
    for rows, columns in product(_divisors(height, MOST_ROWS), _divisors(width, MOST_COLUMNS)):
        if rows * columns > MOST_PIXELS:
            continue
        patch = ((rows - 1) * stride + kernel[0]) * ((columns - 1) * stride + kernel[1])
        for r, c in product(_divisors(rows, MOST_SIDE), _divisors(columns, MOST_SIDE)):
            if r * c <= MOST_EACH:
                vector = gcd(c, 4)
                boxes[rows * columns, r * c, patch, r * c / vector] = None
    channels = [
        (made, own)
        for made in _divisors(out_channels, MOST_CHANNELS)
        for own in _divisors(made, MOST_SIDE)
    ]
    tiles = [
        (made, pixels, own, own_pixels, patch, reads)
        for made, own in channels
        for pixels, own_pixels, patch, reads in boxes
    ]
    return np.array(tiles, dtype=np.float64).T


def _divisors(extent: int, most: int) -> list[int]:
    return [d for d in range(1, min(extent, most) + 1) if extent % d == 0]


def _winograd(shape: ConvShape, gpu: Gpu) -> GpuWork:
    """Three kernels: inputs transformed, products of tiles, outputs transformed."""
    tile = 4 if shape.out_height % 8 == 0 else 2  # as the template chooses it
    spread = (tile + 2) ** 2
    count = shape.batch * blocks(shape.out_height, tile) * blocks(shape.out_width, tile)
    made = best_tile(shape.out_channels, (1, count), shape.channels, (1, 1), 1, spread, gpu)
    between = BYTES * spread * count * (shape.channels + shape.out_channels)
    unique = sum(shape.tensor_bytes) + shape.weight_bytes * spread / shape.taps
    return GpuWork(
        WINOGRAD,
        made.multiply_cycles,
        made.shared_bytes,
        made.level2_bytes + 2 * between,
        unique + 2 * between,
        made.steps,
        3,
        _traits(shape, WINOGRAD, made.loads),
    )


def _depthwise(shape: ConvShape, gpu: Gpu) -> GpuWork:
    """Few multiply-adds per element: what is read and written counts."""
    read = BYTES * shape.output_size * shape.taps
    return GpuWork(
        DEPTHWISE,
        shape.macs / gpu.sms / lanes(gpu),
        read / gpu.sms,
        sum(shape.tensor_bytes),
        sum(shape.tensor_bytes) + shape.weight_bytes,
        1.0,
        1,
        _traits(shape, DEPTHWISE, 1.0),
    )


def _traits(shape: ConvShape, algorithm: str, loads: float) -> tuple[float, ...]:
    """Those of a convolution, and how often its sizes can be halved: rows that lie aligned."""
    *sizes, stride, flat, tile, apart = shape.traits(algorithm, loads / WARP)
    halved = (
        _halvings(shape.out_width, 3),
        0.5 * _halvings(shape.group_channels, 10),
        0.5 * _halvings(shape.out_channels, 9),
    )
    return (*sizes, 3 * stride, flat, tile, apart, *halved)


def _halvings(size: int, most: int) -> float:
    """How often a size can be halved, at most so often."""
    return float(min((size & -size).bit_length() - 1, most))
