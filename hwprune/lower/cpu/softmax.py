"""Softmax over the last axis of a row-major tensor, a row at a time."""

from __future__ import annotations

from math import prod

from hwprune.lower.cpu import emit, rows
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, const, loop
from hwprune.lower.spec import PLAIN, Kernel, Workload


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a softmax workload without epilogue, or None."""
    if workload.op != "softmax" or workload.epilogue or not workload.output.shape:
        return None
    if any(t.layout != PLAIN for t in (*workload.inputs, workload.output)):
        return None
    shape = workload.output.shape

    def body(xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        *outer, size = shape
        with emit.split_threads(prod(outer), context.threads) as (first, count):
            with loop(count) as i:
                at = tuple(emit.split_index(first + i, tuple(outer)) if outer else [])
                source = rows.Row(xs[0], at, size, context.lanes)
                result = rows.Row(y, at, size, context.lanes)
                largest = rows.local(rows.reduce(source, lambda x: x, "max"))

                def power(j: Expr) -> None:
                    value = rows.power(source[j] - largest[0])
                    T.buffer_store(y, value, [*at, j])

                rows.each(size, context.lanes, power)
                share = rows.local(const(1.0) / rows.reduce(result, lambda x: x))

                def normalise(j: Expr) -> None:
                    T.buffer_store(y, result[j] * share[0], [*at, j])

                rows.each(size, context.lanes, normalise)

    func = emit.build_function("softmax", (shape,), (), shape, body)
    return Kernel(workload, func, "cpu.softmax", "a row at a time", lambda params: params)
