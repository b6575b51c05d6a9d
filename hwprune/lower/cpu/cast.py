"""Row-major tensors from one floating-point type to another, where a network in float16 begins."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from hwprune.lower.cpu import emit, rows
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, loop
from hwprune.lower.spec import PLAIN, Kernel, Workload


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of an elementwise workload that only changes the type, or None."""
    source, result = workload.inputs[0], workload.output
    if workload.op != "elementwise" or source.dtype == result.dtype:
        return None
    if workload.epilogue or source.layout != PLAIN or result.layout != PLAIN or not result.shape:
        return None
    func = emit.build_function(
        "cast", (source.shape,), (), result.shape, _Cast(workload, context).emit, source.dtype
    )
    return Kernel(workload, func, "cpu.cast", "element by element", lambda params: params)


@dataclass(frozen=True)
class _Cast:
    workload: Workload
    context: Context

    def emit(self, xs: list[Buffer], _: list[Buffer], y: Buffer) -> None:
        """The whole function."""
        *outer, inner = self.workload.output.shape
        with emit.split_threads(prod(outer), self.context.threads) as (first, count):
            with loop(count) as i:
                at = emit.split_index(first + i, tuple(outer)) if outer else []

                def put(column: Expr) -> None:
                    value = emit.cast(xs[0][(*at, column)], emit.real())
                    T.buffer_store(y, value, [*at, column])

                rows.each(inner, self.context.lanes, put)
