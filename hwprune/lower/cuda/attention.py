"""Attention: a warp a query; its scores stay in shared memory, keys and values where they lie.

In float32 on CUDA cores, whatever the tensors' dtype.
"""

from __future__ import annotations

from hwprune.lower.cuda import emit
from hwprune.lower.cuda.context import Context
from hwprune.lower.cuda.emit import Expr, Function, Shared, T, const, tirx
from hwprune.lower.cuda.epilogue import flat_index
from hwprune.lower.spec import Kernel, Workload

WARP, WARPS = 32, 4
LOWEST = -3.0e38


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of an attention workload; None if it is none or its rows do not fit."""
    if workload.op != "attention" or workload.epilogue:
        return None
    keys, depth = workload.inputs[1].shape[-2:]
    if 4 * WARPS * (keys + depth) > context.shared_bytes or len(workload.inputs[0].shape) != 4:
        return None
    func = emit.build_function(workload, [], lambda f: _Writer(workload, f).write())
    return Kernel(workload, func, "cuda.attention", "a warp a query", lambda p: p)


class _Writer:
    def __init__(self, workload: Workload, function: Function) -> None:
        self.workload, self.function = workload, function
        self.batch, self.heads, self.queries, self.depth = workload.inputs[0].shape
        self.keys, self.width = workload.inputs[2].shape[-2:]
        self.row = self.keys + self.depth

    def write(self) -> None:
        """The queries of a head follow each other: blocks near each other share keys."""
        rows = self.batch * self.heads * self.queries
        shared_bytes = 4 * WARPS * self.row
        blocks = -(-rows // WARPS)
        with self.function.launch(blocks, WARP * WARPS, shared_bytes=shared_bytes) as (b, _, t):
            self.shared = Shared.allocate(WARPS * self.row)
            self.lane, self.first = t % WARP, t // WARP * self.row
            row = tirx.min(b * WARPS + t // WARP, rows - 1)  # all meet at the barriers
            self.at = emit.split_index(row, (self.batch, self.heads, self.queries))
            self._query()
            emit.barrier()
            top = self._scores()
            total = self._exponentials(top)
            emit.barrier()
            self._values(total)

    def _read(self, i: int, at: list[Expr]) -> Expr:
        return self.function.inputs[i][flat_index(self.workload.inputs[i], at)]

    def _query(self) -> None:
        """The query, scaled, beside the scores."""
        b, h, t = self.at
        scale = const(float(self.workload.attr("scale")))
        with T.serial(-(-self.depth // WARP)) as i:
            d = i * WARP + self.lane
            with T.If(d < self.depth), T.Then():
                value = self._read(0, [b, h, t, d]) * scale
                self.shared.store(self.first + self.keys + d, value)

    def _scores(self) -> Expr:
        """A lane a key; yields the largest score."""
        b, h, _ = self.at
        spec = self.workload.inputs[1]
        contiguous = spec.view is not None and spec.view.axes[-1] == len(spec.shape) - 1
        count = emit.vector(self.depth, spec.dtype) if contiguous else 1
        top, acc = emit.registers(1), emit.registers(1)
        T.buffer_store(top, const(LOWEST), [0])
        with T.serial(-(-self.keys // WARP)) as i:
            s = i * WARP + self.lane
            with T.If(s < self.keys), T.Then():
                T.buffer_store(acc, const(0.0), [0])
                with T.serial(self.depth // count) as d:
                    index = flat_index(spec, [b, h, s, d * count])
                    memory = self.function.inputs[1]
                    one = memory[index] if count == 1 else None
                    key = memory.load_vector(index, count) if count > 1 else None
                    with T.unroll(count) as e:
                        value = key(e) if key is not None else one
                        query = self.shared[self.first + self.keys + d * count + e]
                        T.buffer_store(acc, acc[0] + query * value, [0])
                score = self._masked(acc[0], s)
                self.shared.store(self.first + s, score)
                T.buffer_store(top, tirx.max(top[0], self.shared[self.first + s]), [0])
        T.buffer_store(top, emit.value_of("hwp_warp_max", top[0]), [0])
        return top[0]

    def _masked(self, score: Expr, s: Expr) -> Expr:
        b, h, t = self.at
        for i in range(3, len(self.workload.inputs)):
            score = score + self._read(i, [b, h, t, s])
        if self.workload.attr("causal"):
            score = tirx.Select(s <= t, score, const(LOWEST))
        return score

    def _exponentials(self, top: Expr) -> Expr:
        """The scores become shares but for their sum, which it yields."""
        total = emit.registers(1)
        T.buffer_store(total, const(0.0), [0])
        with T.serial(-(-self.keys // WARP)) as i:
            s = i * WARP + self.lane
            with T.If(s < self.keys), T.Then():
                at = self.first + s
                self.shared.store(at, tirx.exp(self.shared[at] - top))
                T.buffer_store(total, total[0] + self.shared[at], [0])
        T.buffer_store(total, emit.value_of("hwp_warp_sum", total[0]), [0])
        return total[0]

    def _values(self, total: Expr) -> None:
        """A lane a column of the values."""
        b, h, t = self.at
        acc = emit.registers(1)
        with T.serial(-(-self.width // WARP)) as i:
            e = i * WARP + self.lane
            with T.If(e < self.width), T.Then():
                T.buffer_store(acc, const(0.0), [0])
                with T.serial(self.keys) as s:
                    term = self.shared[self.first + s] * self._read(2, [b, h, s, e])
                    T.buffer_store(acc, acc[0] + term, [0])
                index = flat_index(self.workload.output, [b, h, t, e])
                self.function.output.store(index, acc[0] / total)
