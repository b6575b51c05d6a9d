"""Layer norm and softmax: a warp a row, its sums by shuffles, the row read again from the cache."""

from __future__ import annotations

from math import prod

import numpy as np

from hwprune.lower.cuda import emit
from hwprune.lower.cuda.context import Context
from hwprune.lower.cuda.emit import Expr, Function, T, const, tirx
from hwprune.lower.cuda.epilogue import Epilogue, channel_params, pack_channels
from hwprune.lower.formulas import supported
from hwprune.lower.spec import NHWC_LAST, PLAIN, Kernel, Workload

WARP, WARPS = 32, 4


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a layer_norm or softmax workload; None if it is neither."""
    if workload.op not in ("layer_norm", "softmax") or not supported(workload.epilogue):
        return None
    if any(spec.layout not in (PLAIN, NHWC_LAST) for spec in (workload.inputs[0], workload.output)):
        return None
    func = emit.build_function(
        workload, channel_params(workload, 0), lambda f: _Writer(workload, f).write()
    )

    def pack(params: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return tuple(map(pack_channels, params))

    return Kernel(workload, func, f"cuda.{workload.op}", "a warp a row", pack)


class _Writer:
    def __init__(self, workload: Workload, function: Function) -> None:
        self.workload, self.function = workload, function
        source = workload.inputs[0]
        *self.leading, self.length = source.shape
        self.stride = source.physical(1)[-1]
        self.rows = prod(self.leading)

    def write(self) -> None:
        """Every block has some rows, a warp each."""
        with self.function.launch(-(-self.rows // WARPS), WARP * WARPS) as (block, _, thread):
            row, lane = block * WARPS + thread // WARP, thread % WARP
            with T.If(row < self.rows), T.Then():
                if self.workload.op == "softmax":
                    self._softmax(row, lane)
                else:
                    self._layer_norm(row, lane)

    def _element(self, row: Expr, column: Expr) -> Expr:
        return self.function.inputs[0][row * self.stride + column]

    def _over(self, row: Expr, lane: Expr, start: float, join: object, warp: str) -> Expr:
        """A row reduced by `join(sum, element)`, over all lanes by a device function."""
        total = emit.registers(1)
        T.buffer_store(total, const(start), [0])
        with T.serial(-(-self.length // WARP)) as i:
            column = i * WARP + lane
            with T.If(column < self.length), T.Then():
                joined = join(total[0], self._element(row, column))  # type: ignore[operator]
                T.buffer_store(total, joined, [0])
        T.buffer_store(total, emit.value_of(warp, total[0]), [0])
        return total[0]

    def _softmax(self, row: Expr, lane: Expr) -> None:
        top = self._over(row, lane, -3.0e38, tirx.max, "hwp_warp_max")
        total = self._over(row, lane, 0.0, lambda s, x: s + tirx.exp(x - top), "hwp_warp_sum")
        self._store(row, lane, lambda x, _: tirx.exp(x - top) / total)

    def _layer_norm(self, row: Expr, lane: Expr) -> None:
        share = const(1.0 / self.length)
        mean = self._over(row, lane, 0.0, lambda s, x: s + x, "hwp_warp_sum") * share
        squares = self._over(
            row, lane, 0.0, lambda s, x: s + (x - mean) * (x - mean), "hwp_warp_sum"
        )
        scale = emit.registers(1)
        eps = const(float(self.workload.attr("eps")))
        T.buffer_store(scale, tirx.rsqrt(squares * share + eps), [0])
        weights = self.function.params[0]
        self._store(row, lane, lambda x, column: (x - mean) * scale[0] * weights[column])

    def _store(self, row: Expr, lane: Expr, value: object) -> None:
        """The row's elements, and zeros in what pads it."""
        norm = self.workload.op == "layer_norm"
        epilogue = Epilogue(
            self.workload, self.function.inputs[1:], self.function.params[norm:], len(self.leading)
        )
        width = self.workload.output.physical(1)[-1]
        with T.serial(-(-width // WARP)) as i:
            column = i * WARP + lane
            with T.If(column < width), T.Then():
                inside = tirx.min(column, self.length - 1)
                result = value(self._element(row, inside), inside)  # type: ignore[operator]
                at = [*emit.split_index(row, self.leading), column]
                epilogue.store(self.function.output, at, 1, lambda e: result)
