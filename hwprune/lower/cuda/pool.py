"""Pooling: a thread a vector of channels of a pixel; over whole planes, warps share the pixels."""

from __future__ import annotations

from hwprune.lower.cuda import emit
from hwprune.lower.cuda.context import Context
from hwprune.lower.cuda.each import each_vector
from hwprune.lower.cuda.emit import Expr, Function, Shared, T, const, tirx
from hwprune.lower.cuda.epilogue import Epilogue
from hwprune.lower.spec import NHWC, PIXEL, Kernel, Workload

LOWEST = -3.0e38
WARP, WARPS = 32, 8


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a pooling workload; None if it is not one."""
    if workload.op not in ("max_pool2d", "avg_pool2d", "global_avg_pool"):
        return None
    if workload.inputs[0].layout != NHWC or workload.epilogue:
        return None
    write = _whole if workload.op == "global_avg_pool" else _windows
    func = emit.build_function(workload, [], lambda f: write(workload, f))
    return Kernel(
        workload, func, f"cuda.{workload.op}", "a vector of channels a thread", lambda p: p
    )


def _windows(workload: Workload, function: Function) -> None:
    _, height, width, pixel = workload.inputs[0].physical(1)
    kernel, stride = workload.attr("kernel"), workload.attr("stride")
    top, left, *_ = workload.attr("padding")
    maximum = workload.op == "max_pool2d"
    dilation = workload.attr("dilation") if maximum else (1, 1)
    lanes = PIXEL if emit.ITEM_BYTES[workload.inputs[0].dtype] == 2 else PIXEL // 2
    epilogue = Epilogue(workload, [], [], axis=1)
    with each_vector(function, workload.output, lanes) as (n, channel, oy, ox):
        acc = emit.registers(lanes)
        inside = emit.registers(1)
        T.buffer_store(inside, const(0.0), [0])
        with T.unroll(lanes) as e:
            T.buffer_store(acc, const(LOWEST if maximum else 0.0), [e])
        with T.serial(kernel[0]) as dy, T.serial(kernel[1]) as dx:
            y = oy * stride[0] - top + dy * dilation[0]
            x = ox * stride[1] - left + dx * dilation[1]
            there = tirx.all(y >= 0, y < height, x >= 0, x < width)
            with T.If(there), T.Then():
                start = ((n * height + y) * width + x) * pixel + channel
                values = function.inputs[0].load_vector(start, lanes)
                T.buffer_store(inside, inside[0] + const(1.0), [0])
                with T.unroll(lanes) as e:
                    old, new = acc[e], values(e)
                    T.buffer_store(acc, tirx.max(old, new) if maximum else old + new, [e])
        share: Expr = const(1.0) if maximum else const(1.0) / _divisor(workload, inside[0])
        epilogue.store(
            function.output, [n, channel, oy, ox], lanes, lambda e: acc[e] * share
        )  # fmt: skip


def _divisor(workload: Workload, inside: Expr) -> Expr:
    """What the sum of a window is divided by."""
    if workload.attr("divisor"):
        return const(float(workload.attr("divisor")))
    if workload.attr("count_include_pad"):
        kernel = workload.attr("kernel")
        return const(float(kernel[0] * kernel[1]))
    return tirx.max(inside, const(1.0))


def _whole(workload: Workload, function: Function) -> None:
    """A block a run of 32 vectors of channels; its warps take every eighth pixel each."""
    batch, height, width, pixel = workload.inputs[0].physical(1)
    lanes = PIXEL if emit.ITEM_BYTES[workload.inputs[0].dtype] == 2 else PIXEL // 2
    channels, area = workload.inputs[0].shape[1], height * width
    runs = -(-pixel // (lanes * WARP))
    shared_bytes = 4 * WARPS * WARP * lanes
    with function.launch(batch * runs, WARP * WARPS, shared_bytes=shared_bytes) as (block, _, t):
        sums = Shared.allocate(WARPS * WARP * lanes)
        n, warp, lane = block // runs, t // WARP, t % WARP
        channel = (block % runs * WARP + lane) * lanes
        acc = emit.registers(lanes)
        with T.unroll(lanes) as e:
            T.buffer_store(acc, const(0.0), [e])
        with T.serial(-(-area // WARPS)) as i:
            position = i * WARPS + warp
            with T.If(tirx.And(position < area, channel < pixel)), T.Then():
                start = (n * area + position) * pixel + channel
                values = function.inputs[0].load_vector(start, lanes)
                with T.unroll(lanes) as e:
                    T.buffer_store(acc, acc[e] + values(e), [e])
        with T.unroll(lanes) as e:
            sums.store(t * lanes + e, acc[e])
        emit.barrier()
        _reduce(workload, function, sums, (n, warp, lane, channel), (lanes, channels, area))


def _reduce(
    workload: Workload, function: Function, sums: Shared, at: tuple[Expr, ...],
    sizes: tuple[int, int, int],
) -> None:  # fmt: skip
    """The first warp adds what the others found and stores the mean."""
    n, warp, lane, channel = at
    lanes, channels, area = sizes
    output = workload.output
    limit = output.physical(1)[-1] if output.layout == NHWC else channels
    rest = output.physical(1)[-1]
    with T.If(warp == 0), T.Then(), T.serial(lanes) as e:
        total = emit.registers(1)
        T.buffer_store(total, const(0.0), [0])
        with T.serial(WARPS) as w:
            T.buffer_store(total, total[0] + sums[(w * WARP + lane) * lanes + e], [0])
        with T.If(channel + e < limit), T.Then():
            function.output.store(n * rest + channel + e, total[0] * const(1.0 / area))
