"""Work of kernels by our own CUDA rules: the tiles that they would choose.

In: a `Workload` as a GPU runs it (channels last, in its dtype), a `Target` of kind "cuda". Out: the
`GpuWork`s that make up the kernel. Nothing is compiled: the rules' own choice of tiles is asked.
Blocks are shared out to multiprocessors in waves, so that latency over a width is a staircase:
its steps are where another column of tiles, or another wave, begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2, prod

from hwprune.gpu import Gpu
from hwprune.lower.cuda import conv, tiles
from hwprune.lower.cuda.context import Context
from hwprune.lower.expansion import EXPAND_DEPTHWISE, parts
from hwprune.lower.spec import PIXEL, TensorSpec, Workload
from hwprune.macs import macs
from hwprune.predict.gpu_work import (
    DEPTHWISE,
    DIRECT,
    GPU_ALGORITHMS,
    OTHER,
    STEP_CYCLES,
    TENSOR,
    GpuWork,
    lanes,
)
from hwprune.predict.work import beyond, blocks
from hwprune.target import Target

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "bool": 1, "int64": 8}
SPARE_REGISTERS = 64  # of a thread, beside the sums


@dataclass(frozen=True)
class Product:
    """Rows times columns in each of several groups, of `chunks` of 16 bytes, by tiles.

    `arithmetic` as `conv.arithmetic` has it: "float32" is CUDA cores.
    """

    rows: int
    cols: int
    chunks: int
    groups: int
    tile: tiles.Tile
    arithmetic: str


def gpu_planned_works(workload: Workload, target: Target) -> tuple[GpuWork, ...]:
    """The counts of a kernel as our rules would write it; two of an expansion and its reader.

    Raises ValueError where the target has no `[gpu]`.
    """
    if target.gpu is None:
        raise ValueError(f"target {target.name} has no [gpu]")
    if workload.op == EXPAND_DEPTHWISE:
        return tuple(_work(part, target, target.gpu) for part in parts(workload))
    return (_work(workload, target, target.gpu),)


def _work(workload: Workload, target: Target, gpu: Gpu) -> GpuWork:
    product = _product_of(workload, Context.of(target))
    return _streamed(workload, gpu) if product is None else _tiled(workload, product, gpu)


def _product_of(workload: Workload, context: Context) -> Product | None:
    """The product that a kernel is, by the tile of its rule; None where it is none."""
    dtype = workload.output.dtype
    items = tiles.CHUNK_BYTES // ITEM_BYTES[dtype]
    if workload.op == "conv2d":
        channels = workload.params[0].shape[1]
        if channels == 1 and workload.inputs[0].shape[1] > 1:
            return None
        plan = conv.Plan(workload, context)
        return Product(plan.rows, plan.cols, plan.chunks, plan.groups, plan.tile, plan.arithmetic)
    if workload.op == "linear":
        out, depth = workload.params[0].shape
        sizes = (prod(workload.output.shape) // out, _padded(out), blocks(_padded(depth), items), 1)
    elif workload.op in ("matmul", "attention"):
        rows, cols = workload.output.shape[-2:]
        depth = max(macs(workload) // prod(workload.output.shape), 1)
        sizes = (rows, cols, blocks(depth, items), prod(workload.output.shape[:-2]))
    else:
        return None
    kind = conv.arithmetic(workload) if workload.op == "linear" else "float32"
    tile = tiles.choose(*sizes[:2], *sizes[2:], kind != "float32", context)
    return Product(*sizes, tile, kind)


def _tiled(workload: Workload, product: Product, gpu: Gpu) -> GpuWork:
    """Blocks of tiles in waves; operands through shared memory in stages."""
    dtype, tile = workload.output.dtype, product.tile
    kind, item = product.arithmetic, ITEM_BYTES[dtype]
    tensor = kind in gpu.tensor_flop_per_s
    count = blocks(product.rows, tile.rows) * blocks(product.cols, tile.cols) * product.groups
    each = blocks(count, gpu.sms)  # of the multiprocessor that has most
    waves = blocks(each, _at_once(tile, gpu))
    steps = blocks(product.chunks, tile.chunks)
    depth = steps * tile.chunks * tiles.CHUNK_BYTES // item
    rate = gpu.tensor_flop_per_s[kind] / (2 * gpu.sms * gpu.clock_hz) if tensor else lanes(gpu)
    multiply = each * tile.rows * tile.cols * depth / rate
    waiting = waves * steps * STEP_CYCLES / max(tile.stages - 1, 1)
    fragments = tile.rows * tile.warps[1] + tile.cols * tile.warps[0]
    algorithm = TENSOR if tensor else DIRECT
    sizes = (product.chunks, product.cols, product.rows, product.groups)
    return GpuWork(
        algorithm,
        max(multiply, waiting),
        each * depth * item * float(fragments + tile.rows + tile.cols),
        float(count * (tile.rows + tile.cols) * depth * item + _bytes(workload.output)),
        _far_bytes(workload, gpu),
        float(waves),
        1,
        _traits(tuple(map(log2, sizes)), algorithm),
    )


def _at_once(tile: tiles.Tile, gpu: Gpu) -> int:
    """Blocks that a multiprocessor holds at a time."""
    registers = tile.threads * (tile.accumulators + SPARE_REGISTERS)
    return max(
        1,
        min(
            gpu.threads_per_sm // tile.threads,
            gpu.blocks_per_sm,
            gpu.shared_bytes_per_sm // tile.shared_bytes,
            gpu.registers_per_sm // registers,
        ),
    )


def _streamed(workload: Workload, gpu: Gpu) -> GpuWork:
    """Depthwise convolutions, pools, norms, activations, moves: what is read and written counts."""
    size = prod(workload.output.physical(PIXEL))
    taken = max((prod(t.physical(PIXEL)) for t in workload.inputs), default=size)
    taps = _taps(workload)
    touched = max(size * taps, taken) * (1 + len(workload.epilogue))
    moved = sum(map(_bytes, (*workload.inputs, *workload.params, workload.output)))
    algorithm = DEPTHWISE if workload.op == "conv2d" else OTHER
    item = ITEM_BYTES.get(workload.output.dtype, 4)
    return GpuWork(
        algorithm,
        max(touched, macs(workload)) / gpu.sms / lanes(gpu),
        size * taps * item / gpu.sms,
        float(moved),
        _far_bytes(workload, gpu),
        1.0,
        1,
        _traits((log2(size), log2(taken), log2(taps), 0.0), algorithm),
    )


def _taps(workload: Workload) -> int:
    """Elements of a plane that each output reads."""
    if workload.op == "conv2d":
        return prod(workload.params[0].shape[2:])
    return prod(workload.attr("kernel")) if workload.op in ("max_pool2d", "avg_pool2d") else 1


def _far_bytes(workload: Workload, gpu: Gpu) -> float:
    """From and to memory: weights, and what level 2 does not hold from one kernel to the next."""
    values = [_bytes(t) for t in (*workload.inputs, workload.output)]
    weights = sum(map(_bytes, workload.params))
    return weights + sum(size * beyond(size, gpu.l2_bytes) for size in values)


def _bytes(spec: TensorSpec) -> int:
    return ITEM_BYTES.get(spec.dtype, 4) * prod(spec.physical(PIXEL))


def _padded(channels: int) -> int:
    """Channels of a pixel in memory: whole loads of a thread."""
    return blocks(channels, PIXEL) * PIXEL


def _traits(sizes: tuple[float, ...], algorithm: str) -> tuple[float, ...]:
    return (*sizes, 8.0 * GPU_ALGORITHMS.index(algorithm))
