"""Attention as one kernel: scores, softmax and the weighted sum of a few query rows at a time.

Keys and values of a head are packed once into vectors; the scores of a block of rows never leave
the near caches. Queries, keys, values and the result may be views of larger tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hwprune.lower.cpu import emit, rows, tiles
from hwprune.lower.cpu.emit import Buffer, Context, Expr, T, const, loop, tirx, unroll
from hwprune.lower.cpu.product import product
from hwprune.lower.spec import Kernel, TensorSpec, Workload

LOWEST = -3.0e38
MOST_ROWS = 14  # query rows whose scores are computed together


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of an attention workload without epilogue, or None."""
    if workload.op != "attention" or workload.epilogue:
        return None
    if any(t.view is None for t in (*workload.inputs, workload.output)):
        return None
    plan = _Plan(workload, context)
    func = emit.build_function(
        "attention",
        emit.physical_inputs(workload, context.lanes),
        (),
        workload.output.physical(context.lanes),
        plan.emit,
    )
    reason = f"{plan.block} query rows at a time"
    return Kernel(workload, func, "cpu.attention", reason, lambda params: params)


@dataclass(frozen=True)
class _Head:
    """The buffers that one head is computed with."""

    keys: Buffer  # (vectors of keys, depth, lanes)
    values: Buffer  # (vectors of the result, keys, lanes)
    scores: Buffer  # (rows, keys in whole vectors)
    sums: Buffer  # (rows,)


@dataclass(frozen=True)
class _Plan:
    workload: Workload
    context: Context

    @property
    def queries(self) -> int:
        return self.workload.output.shape[2]

    @property
    def keys(self) -> int:
        return self.workload.inputs[1].shape[2]

    @property
    def depth(self) -> int:
        return self.workload.inputs[0].shape[3]

    @property
    def width(self) -> int:
        return self.workload.output.shape[3]

    def vectors(self, size: int) -> int:
        """Vectors of that many elements."""
        return emit.blocks(size, self.context.lanes)

    def tile(self, size: int) -> tiles.Tile:
        """Rows x vectors kept in registers by a product with `size` columns.

        One register in eight is left to the constants of the softmax, which LLVM keeps alive.
        """
        vectors, registers = self.vectors(size), self.context.registers * 7 // 8
        pipes = self.context.pipes
        return tiles.choose(1, self.queries, vectors, registers, one_row=True, pipes=pipes)

    @property
    def block(self) -> int:
        """Query rows at a time: few are computed twice, and many share what is loaded."""
        step = min(self.tile(self.keys).cols, self.queries)
        sizes = range(step, max(step, min(MOST_ROWS, self.queries)) + 1, step)
        return min(sizes, key=lambda size: (-(-self.queries // size) * size, -size))

    def emit(self, xs: list[Buffer], ps: list[Buffer], y: Buffer) -> None:
        """Threads share the heads, or the rows of each where the heads cannot be shared evenly."""
        batch, heads = self.workload.output.shape[:2]
        lanes, count = self.context.lanes, batch * heads
        blocks = -(-self.queries // self.block)
        parts = min(1 if count % self.context.threads == 0 else self.context.threads, blocks)
        with emit.split_threads(count * parts, self.context.threads) as (first, mine):
            head = _Head(
                T.alloc_buffer((self.vectors(self.keys), self.depth, lanes), "float32"),
                T.alloc_buffer((self.vectors(self.width), self.keys, lanes), "float32"),
                T.alloc_buffer((self.block, self.vectors(self.keys) * lanes), "float32"),
                T.alloc_buffer((self.block,), "float32"),
            )
            with loop(mine) as i:
                n, h, part = emit.split_index(first + i, (batch, heads, parts))
                self._pack(xs, n, h, head)
                start = part * blocks // parts
                with loop((part + 1) * blocks // parts - start if parts > 1 else blocks) as b:
                    row = (start + b) * self.block
                    row = tirx.min(row, self.queries - self.block) if blocks > 1 else 0
                    self._rows(xs, y, (n, h), row, head)

    def _pack(self, xs: list[Buffer], n: Expr, h: Expr, head: _Head) -> None:
        """Keys with the scale, transposed, and values; zeros past the last of either."""
        lanes, scale = self.context.lanes, const(self.workload.attr("scale"))
        key, value = self._reader(1, xs), self._reader(2, xs)

        def fill(block: Expr, lane_count: int) -> None:
            with loop(lane_count) as lane, loop(self.depth) as k:
                product = key([n, h, block * lanes + lane, k]) * scale
                T.buffer_store(head.keys, product, [block, k, lane])

        whole, rest = divmod(self.keys, lanes)
        if whole:
            with loop(whole) as block:
                fill(block, lanes)
        if rest:
            with loop(self.depth) as k:
                emit.store_vector(head.keys, [whole, k], lanes, lambda _: const(0.0))
            fill(whole, rest)
        whole, rest = divmod(self.width, lanes)
        with loop(self.keys) as k:
            if whole:
                with loop(whole) as b, T.vectorized(lanes) as lane:
                    T.buffer_store(head.values, value([n, h, k, b * lanes + lane]), [b, k, lane])
            if rest:
                emit.store_vector(head.values, [whole, k], lanes, lambda _: const(0.0))
                with loop(rest) as j:
                    element = value([n, h, k, whole * lanes + j])
                    T.buffer_store(head.values, element, [whole, k, j])

    def _rows(
        self, xs: list[Buffer], y: Buffer, at: tuple[Expr, Expr], row: Expr, head: _Head
    ) -> None:
        """One block of query rows of one head."""
        n, h = at
        query = self._reader(0, xs)
        lanes = self.context.lanes

        def score(r: Expr, block: Expr, lane: Expr, value: Expr) -> None:
            T.buffer_store(head.scores, value, [r, block * lanes + lane])

        self._product(
            self.keys, self.depth, lambda r, k: query([n, h, row + r, k]), head.keys, score
        )
        with loop(self.block) as r:
            self._mask(xs, n, h, row, r, head)
            self._softmax(r, head)

        def result(r: Expr, block: Expr, lane: Expr, value: Expr) -> None:
            where = self._index(self.workload.output, [n, h, row + r, block * lanes + lane])
            T.buffer_store(y, value * head.sums[r], where)

        self._product(
            self.width, self.keys, lambda r, k: head.scores[r, k], head.values, result, exact=True
        )

    def _product(
        self,
        columns: int,
        depth: int,
        left: Callable[[Expr, Expr], Expr],
        right: Buffer,
        store: Callable[[Expr, Expr, Expr, Expr], None],
        *,
        exact: bool = False,
    ) -> None:
        """`left` (rows x depth) times `right` (vectors, depth, lanes); `exact` omits padding."""
        tile = self.tile(columns)
        for part in tiles.segments(self.vectors(columns), tile.blocks):
            for rows_ in tiles.segments(self.block, tile.cols):
                with loop(part.count) as bi, loop(rows_.count) as ri:
                    block, row = part.start + bi * part.size, rows_.start + ri * rows_.size
                    shape = tiles.Tile(1, rows_.size, part.size)
                    self._tile(shape, row, block, depth, left, right, store, columns * exact)

    def _tile(
        self,
        tile: tiles.Tile,
        row: Expr,
        block: Expr,
        depth: int,
        left: Callable[[Expr, Expr], Expr],
        right: Buffer,
        store: Callable[[Expr, Expr, Expr, Expr], None],
        limit: int,
    ) -> None:
        lanes = self.context.lanes
        acc = product(tile, depth, lambda r, k, j: left(row + r, k + j), right, block)
        with unroll(tile.cols) as r, unroll(tile.blocks) as b:
            i = r * tile.blocks + b
            if limit % lanes == 0:
                with T.vectorized(lanes) as lane:
                    store(row + r, block + b, lane, acc[i, lane])
            else:
                with T.serial(tirx.min(lanes, limit - (block + b) * lanes)) as lane:
                    store(row + r, block + b, lane, acc[i, lane])

    def _mask(self, xs: list[Buffer], n: Expr, h: Expr, row: Expr, r: Expr, head: _Head) -> None:
        """Add the mask to a row of scores; what may not be seen becomes the lowest number."""
        causal, masks = self.workload.attr("causal"), range(3, len(self.workload.inputs))
        padded = self.vectors(self.keys) * self.context.lanes

        def visit(column: Expr) -> None:
            value = head.scores[r, column]
            for operand in masks:
                value = value + self._reader(operand, xs)([n, h, row + r, column])
            if masks:
                value = tirx.max(value, const(LOWEST))
            if causal:
                value = tirx.Select(column <= row + r, value, const(LOWEST))
            T.buffer_store(head.scores, value, [r, column])

        if causal or masks:
            rows.each(self.keys, self.context.lanes, visit)
        if padded > self.keys:
            with T.serial(padded - self.keys) as i:
                T.buffer_store(head.scores, const(LOWEST), [r, self.keys + i])

    def _softmax(self, r: Expr, head: _Head) -> None:
        """e**(score - largest) of a row, and one over the sum of it."""
        row = rows.Row(
            head.scores, (r,), self.vectors(self.keys) * self.context.lanes, self.context.lanes
        )
        largest = rows.local(rows.reduce(row, lambda x: x, "max"))

        def power(column: Expr) -> Expr:
            return rows.power(head.scores[r, column] - largest[0])

        rows.each(row.size, row.lanes, lambda j: T.buffer_store(head.scores, power(j), [r, j]))
        T.buffer_store(head.sums, const(1.0) / rows.reduce(row, lambda x: x), [r])

    def _reader(self, operand: int, xs: list[Buffer]) -> Callable[[list[Expr]], Expr]:
        """A function from logical indices to an operand's element, with NumPy's broadcasting."""
        spec = self.workload.inputs[operand]

        def read(at: list[Expr]) -> Expr:
            sizes = spec.shape
            aligned = [0] * (len(sizes) - len(at)) + at[max(0, len(at) - len(sizes)) :]
            whole = [i if size > 1 else 0 for i, size in zip(aligned, sizes, strict=True)]
            return xs[operand][tuple(self._index(spec, whole))]

        return read

    def _index(self, spec: TensorSpec, at: list[Expr]) -> list[Expr]:
        view = spec.view
        assert view is not None
        return view.index(at)
