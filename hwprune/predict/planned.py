"""Work of kernels by our own rules: the tiles and algorithms that they would choose.

In: a `Workload`, a `Target`, threads. Out: the `Work`s that make up the kernel. Nothing is
compiled: the rules' own plans are asked, so that a prediction follows when a rule changes.
"""

from __future__ import annotations

from math import prod

import numpy as np

from hwprune.lower.cpu import tiles, winograd, winograd_choice
from hwprune.lower.cpu.conv_plan import Plan
from hwprune.lower.cpu.emit import Context
from hwprune.lower.cpu.geometry import Geometry
from hwprune.lower.expansion import EXPAND_DEPTHWISE, parts
from hwprune.lower.spec import TensorSpec, Workload
from hwprune.macs import macs
from hwprune.predict.conv_shape import ConvShape
from hwprune.predict.work import DEPTHWISE, DIRECT, OTHER, WINOGRAD, Work, blocks, imbalance
from hwprune.target import Target

SCALAR = "aten"  # left to TVM's importer: plain loops


def planned_works(workload: Workload, target: Target, threads: int) -> tuple[Work, ...]:
    """The counts of a kernel as our rules would write it; two of an expansion and its reader.

    Kernels without a rule count an element at a time. `read`, below: loads of an input value at
    one step of a tile, one where it is broadcast, a share where a multiply-add takes a lane.
    """
    context = Context.of(target, threads)
    lanes_free = target.core is not None and target.core.lane_operand
    read = 1 / context.lanes if lanes_free else 1.0
    if workload.op == EXPAND_DEPTHWISE:
        return tuple(_convolution(part, context, read) for part in parts(workload))
    if workload.op == "conv2d":
        return (_convolution(workload, context, read),)
    if workload.op in ("linear", "matmul", "attention"):
        return (_product(workload, context, read),)
    return (_elementwise(workload, context),)


def _convolution(workload: Workload, context: Context, read: float) -> Work:
    g = Geometry.of(workload)
    if g.group_in == 1 and g.groups > 1 and g.out_channels == g.channels:
        return _depthwise(workload, g, context)
    if winograd.applies(workload):
        choice = winograd_choice.choose(g, context)
        if choice is not None:
            return _winograd(workload, g, choice, context, read)
    return _direct(workload, context, read)


def _direct(workload: Workload, context: Context, read: float) -> Work:
    plan = Plan.of(workload, context)
    steps = plan.reduction.extent * plan.taps * plan.geometry.batch
    multiplied = loaded = pieces = sums = 0.0
    for part in plan.block_segments():
        chunks = blocks(plan.steps, plan.chunk_steps(part))
        for rows, columns in plan.plane_segments():
            count = rows.count * columns.count * part.count
            positions = rows.size * columns.size
            multiplied += count * positions * part.size
            loaded += count * (part.size + positions * read)
            sums += (chunks - 1) * count * positions * part.size
            pieces += count
    share = imbalance(int(pieces), context.threads) / context.threads
    shape = _shape(plan.geometry)
    return Work(
        DIRECT,
        share * steps * multiplied,
        share * steps * loaded,
        share * plan.geometry.batch * sums,
        0.0,
        _tensor_bytes(workload),
        _weight_bytes(workload),
        shape.traits(DIRECT, loaded / (multiplied * context.lanes)),
    )


def _winograd(
    workload: Workload, g: Geometry, choice: winograd_choice.Choice, context: Context, read: float
) -> Work:
    spread = (choice.m + 2) ** 2
    count = g.batch * blocks(g.out_height, choice.m) * blocks(g.out_width, choice.m)
    out = blocks(g.out_channels, context.lanes)
    tile = winograd_choice.product_tile(min(choice.chunk, count), out, context)
    each = spread * count * g.channels * out / context.threads
    loads = (tile.blocks + tile.cols * read) / (tile.blocks * tile.cols)
    shape = _shape(g)
    return Work(
        WINOGRAD,
        each,
        each * loads,
        0.0,
        spread * count * (g.channels + g.out_channels) / context.lanes,
        _tensor_bytes(workload),
        _weight_bytes(workload) * spread / shape.taps,
        shape.traits(WINOGRAD, loads / context.lanes),
    )


def _depthwise(workload: Workload, g: Geometry, context: Context) -> Work:
    shape, vectors = _shape(g), blocks(g.channels, context.lanes)
    share = imbalance(g.batch * vectors * g.out_height, context.threads) / context.threads
    multiplied = share * vectors * shape.pixels * shape.taps
    return Work(
        DEPTHWISE,
        multiplied,
        multiplied * min(shape.stride, shape.kernel_width) / 2,
        0.0,
        0.0,
        _tensor_bytes(workload),
        _weight_bytes(workload),
        shape.traits(DEPTHWISE, 1.0),
    )


def _product(workload: Workload, context: Context, read: float) -> Work:
    """Rows times a matrix: tiles of rows and vectors of columns."""
    columns = workload.output.shape[-1]
    rows = max(prod(workload.output.shape) // columns, 1)
    depth = max(macs(workload) // (rows * columns), 1)
    out = blocks(columns, context.lanes)
    tile = tiles.choose(1, rows, out, context.registers, one_row=True)
    pieces = blocks(rows, tile.cols) * blocks(out, tile.blocks)
    share = imbalance(pieces, context.threads) / context.threads
    loads = (tile.blocks + tile.cols * read) / (tile.blocks * tile.cols)
    each = share * rows * out * depth
    shape = ConvShape(1, depth, columns, 1, rows, 1, rows, 1, 1, 1)
    return Work(
        DIRECT,
        each,
        each * loads,
        0.0,
        0.0,
        _tensor_bytes(workload),
        _weight_bytes(workload),
        shape.traits(DIRECT, loads / context.lanes),
    )


def _elementwise(workload: Workload, context: Context) -> Work:
    """Moves, activations, pools, norms: vectors; what has no rule, an element at a time."""
    size = prod(workload.output.shape)
    taps = prod(workload.attr("kernel")) if workload.op in ("max_pool2d", "avg_pool2d") else 1
    taken = max((prod(t.shape) for t in workload.inputs), default=size)
    touched = max(size * taps, taken) * (1 + len(workload.epilogue))
    scalar = workload.op == SCALAR
    vectors = 0.0 if scalar else touched / context.lanes / context.threads
    return Work(
        OTHER,
        vectors,
        vectors,
        0.0,
        float(max(touched, macs(workload))) if scalar else 0.0,
        _tensor_bytes(workload),
        _weight_bytes(workload),
        ConvShape(1, 1, max(taken, 1), 1, size, 1, size, 1, 1, 1).traits(OTHER, 1.0),
    )


def _shape(g: Geometry) -> ConvShape:
    top, left, bottom, right = g.padding
    height, width = g.height + top + bottom, g.width + left + right
    return ConvShape(
        g.batch, g.channels, g.out_channels, height, width, g.out_height, g.out_width,
        *g.kernel, g.stride[0], g.groups,
    )  # fmt: skip


def _tensor_bytes(workload: Workload) -> tuple[float, ...]:
    return tuple(_bytes(t) for t in (*workload.inputs, workload.output))


def _weight_bytes(workload: Workload) -> float:
    return float(sum(_bytes(t) for t in workload.params))


def _bytes(spec: TensorSpec) -> float:
    return float(np.dtype(spec.dtype).itemsize * prod(spec.shape))
