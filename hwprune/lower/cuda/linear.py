"""Linear layers: rows of a matrix, or the pixels of an image, times the weights' rows."""

from __future__ import annotations

from math import prod

import numpy as np

from hwprune.lower.cuda import emit, gemm, tiles
from hwprune.lower.cuda.context import Context
from hwprune.lower.cuda.conv import arithmetic
from hwprune.lower.cuda.emit import Expr, Function
from hwprune.lower.cuda.epilogue import Epilogue, channel_params, pack_channels
from hwprune.lower.cuda.rows import Matrix
from hwprune.lower.formulas import supported
from hwprune.lower.spec import NHWC, NHWC_LAST, PIXEL, PLAIN, Kernel, Workload, numpy_type


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a linear workload; None if it is not one."""
    if workload.op != "linear" or not supported(workload.epilogue):
        return None
    if workload.inputs[0].layout not in (PLAIN, NHWC_LAST):
        return None
    plan = _Plan(workload, context)
    weights = ((1, plan.cols, plan.chunks * plan.items), workload.inputs[0].dtype)
    params = [weights, *channel_params(workload, 1)]
    func = emit.build_function(workload, params, plan.write)
    return Kernel(
        workload, func, f"cuda.linear_{plan.arithmetic}", f"tile {plan.tile.text}", plan.pack
    )


class _Plan:
    def __init__(self, workload: Workload, context: Context) -> None:
        self.workload = workload
        source, output = workload.inputs[0], workload.output
        self.flips = output.layout == NHWC
        *self.leading, depth = source.shape
        self.rows = prod(self.leading)
        self.stride = source.physical(1)[-1]
        self.depth = self.stride if source.layout == NHWC_LAST else depth
        self.out = workload.params[0].shape[0]
        self.cols = output.physical(1)[-1]
        self.items = tiles.CHUNK_BYTES // emit.ITEM_BYTES[source.dtype]
        self.chunks = -(-self.depth // self.items)
        self.arithmetic = arithmetic(workload)
        tensor = self.arithmetic != "float32"
        self.tile = tiles.choose(self.rows, self.cols, self.chunks, 1, tensor, context)

    def write(self, function: Function) -> None:
        product = gemm.Product(self.rows, self.cols, self.chunks, 1, self.arithmetic, self.tile)
        params = function.params[1:]
        axis = 1 if self.flips else len(self.leading)
        epilogue = Epilogue(self.workload, function.inputs[1:], params, axis)
        source = Matrix(
            function.inputs[0], self.rows, self.depth, self.stride, self.tile.chunks,
            self.tile.rows_of_thread,
        )  # fmt: skip
        width = emit.vector(self.cols, "float16") if self.cols % PIXEL else PIXEL
        gemm.write(function, product, source, epilogue, self._locate, width)

    def _locate(self, group: Expr, row: Expr, col: Expr) -> list[Expr]:
        at = emit.split_index(row, self.leading)
        return [at[0], col, *at[1:]] if self.flips else [*at, col]

    def pack(self, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Weights as (1, columns, depth), zeros to whole chunks."""
        weight, *params = arrays
        m, k = weight.shape
        rows = np.zeros((1, self.cols, self.chunks * self.items), np.float32)
        rows[0, :m, :k] = weight
        dtype = numpy_type(self.workload.inputs[0].dtype)
        return (rows.astype(dtype), *map(pack_channels, params))
