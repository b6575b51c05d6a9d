"""A product of rows and columns: tiles in shared memory, filled while the ones before are used.

Convolutions and linear layers are this product; a `Source` says where the chunks of a row lie. The
sums stay in registers in the layout of mma.m16n8, go through shared memory to rows, and get
their epilogue there, a vector of channels a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hwprune.lower.cuda import emit
from hwprune.lower.cuda.emit import Expr, Function, T, call, const, tirx
from hwprune.lower.cuda.epilogue import Epilogue
from hwprune.lower.cuda.tiles import CHUNK_BYTES, WARP, Tile
from hwprune.lower.spec import PIXEL

KINDS = {"float16": "half", "bfloat16": "nv_bfloat16", "tf32": "hwp_tf32"}


class Source(Protocol):
    """Where the left factor's rows lie. A row is a number of chunks of 16 bytes."""

    def begin(self) -> None:
        """Make room for what `prepare` finds."""

    def prepare(self, index: Expr, row: Expr, group: Expr) -> None:
        """Compute what the `index`-th row of this thread needs, once."""

    def fill(self, index: Expr, tile: Expr, row: Expr, at: Expr, chunk: Expr) -> None:
        """Bring chunk `chunk` of that row to chunk `at` of row `row` of a tile, or zeros."""


@dataclass(frozen=True)
class Product:
    """Sizes of a product, in every group, and what it computes with ("float32" is CUDA cores)."""

    rows: int
    cols: int
    chunks: int
    groups: int
    arithmetic: str
    tile: Tile


Locate = Callable[[Expr, Expr, Expr], Sequence[Expr]]


def write(
    function: Function,
    product: Product,
    source: Source,
    epilogue: Epilogue,
    locate: Locate,
    width: int,
) -> None:
    """The kernel; the weights are the function's first parameter.

    `locate(group, row, column)` is the logical index of an element of the output.
    `width` elements of a row are stored at a time.
    """
    _Writer(function, product, source, epilogue, locate, width).write()


@dataclass
class _Writer:
    function: Function
    product: Product
    source: Source
    epilogue: Epilogue
    locate: Locate
    width: int

    def write(self) -> None:
        product, tile = self.product, self.product.tile
        tiles_n, tiles_m = -(-product.cols // tile.cols), -(-product.rows // tile.rows)
        with self.function.launch(
            tiles_m * tiles_n, tile.threads, groups=product.groups, shared_bytes=tile.shared_bytes
        ) as (block, group, thread):
            self.group, self.thread = group, thread
            self.row, self.col = block // tiles_n * tile.rows, block % tiles_n * tile.cols
            self.shared = T.alloc_buffer((tile.shared_bytes,), "uint8", scope="shared.dyn")
            self.acc = emit.registers(tile.accumulators)
            with T.unroll(tile.accumulators) as i:
                T.buffer_store(self.acc, const(0.0), [i])
            self._prepare()
            self._pipeline()
            self._finish()

    @property
    def _step_rows(self) -> int:
        """Rows that the block fills at a time, a chunk a thread."""
        return self.product.tile.threads // self.product.tile.chunks

    def _prepare(self) -> None:
        tile = self.product.tile
        self.source.begin()
        with T.unroll(tile.rows_of_thread) as i:
            row = self.row + self.thread // tile.chunks + i * self._step_rows
            self.source.prepare(i, row, self.group)

    def _pipeline(self) -> None:
        product, stages = self.product, self.product.tile.stages
        steps = -(-product.chunks // product.tile.chunks)
        with T.serial(stages - 1) as s:
            self._load(s, s)
            call("hwp_commit")
        with T.serial(steps) as step:
            call(f"hwp_wait<{stages - 2}>")
            emit.barrier()
            with T.If(step + (stages - 1) < steps), T.Then():
                self._load(step + (stages - 1), (step + (stages - 1)) % stages)
            call("hwp_commit")
            self._multiply(step % stages)

    def _address(self, offset: Expr) -> Expr:
        return T.address_of(self.shared[offset])

    def _load(self, step: Expr, stage: Expr) -> None:
        """Fill a stage with both factors' chunks of a step of the reduction."""
        product, tile = self.product, self.product.tile
        a = stage * tile.stage_bytes
        b = a + tile.rows * tile.chunks * CHUNK_BYTES
        at, first = self.thread % tile.chunks, self.thread // tile.chunks
        chunk = step * tile.chunks + at
        with T.unroll(tile.rows_of_thread) as i:
            row = first + i * self._step_rows
            self.source.fill(i, self._address(a), row, at, chunk)
        weight = self.function.params[0]
        items = CHUNK_BYTES // weight.item_bytes
        with T.unroll(-(-tile.cols // self._step_rows)) as i:
            row = first + i * self._step_rows
            column = self.col + row
            there = tirx.And(column < product.cols, chunk < product.chunks)
            index = ((self.group * product.cols + column) * product.chunks + chunk) * items
            address = weight.address(tirx.Select(there, index, 0))
            name = f"hwp_fill<{tile.chunks}, {CHUNK_BYTES}>"
            call(name, self._address(b), row, at, 0, address, there)

    def _warp(self) -> tuple[Expr, Expr, Expr]:
        """(the warp's first row, its first column, the lane)."""
        tile = self.product.tile
        mt, nt = tile.fragments
        warp = self.thread // WARP
        return warp // tile.warps[1] * mt * 16, warp % tile.warps[1] * nt * 8, self.thread % WARP

    def _multiply(self, stage: Expr) -> None:
        tile, kind = self.product.tile, self.product.arithmetic
        mt, nt = tile.fragments
        row, col, lane = self._warp()
        line = tile.chunks * CHUNK_BYTES
        a = stage * tile.stage_bytes + row * line
        b = stage * tile.stage_bytes + (tile.rows + col) * line
        name = f"hwp_product_simt<{mt}, {nt}, {tile.chunks}>"
        if kind != "float32":
            name = f"hwp_product<{KINDS[kind]}, {mt}, {nt}, {tile.chunks}>"
        call(name, T.address_of(self.acc[0]), self._address(a), self._address(b), lane)

    def _finish(self) -> None:
        """Stage the result in shared memory and store it row by row."""
        product, tile, width = self.product, self.product.tile, self.width
        mt, nt = tile.fragments
        call("hwp_wait<0>")
        emit.barrier()
        row, col, lane = self._warp()
        stride = tile.result_stride
        start = self._address((row * stride + col) * 4)
        call(f"hwp_stage<{mt}, {nt}, {stride}>", start, T.address_of(self.acc[0]), lane)
        emit.barrier()
        vectors = tile.cols // width
        with T.serial(-(-tile.rows * vectors // tile.threads)) as i:
            index = i * tile.threads + self.thread
            r, c = index // vectors, index % vectors * width
            there = tirx.And(self.row + r < product.rows, self.col + c < product.cols)
            with T.If(tirx.And(r < tile.rows, there)), T.Then():
                self._store(r, c)
        self._clear()

    def _clear(self) -> None:
        """Zeros in the channels that pad a pixel, where the groups' channels do not fill it."""
        product, tile, y = self.product, self.product.tile, self.function.output
        channels = product.groups * product.cols
        pads = -channels % PIXEL if product.groups > 1 else 0
        if not pads:
            return
        mine = tirx.And(self.group == product.groups - 1, self.col == 0)
        with T.If(mine), T.Then(), T.serial(-(-tile.rows * pads // tile.threads)) as i:
            index = i * tile.threads + self.thread
            row = self.row + index // pads
            with T.If(tirx.And(index < tile.rows * pads, row < product.rows)), T.Then():
                at = row * (channels + pads) + channels + index % pads
                y.store(at, const(0.0))

    def _store(self, r: Expr, c: Expr) -> None:
        width, stride = self.width, self.product.tile.result_stride
        values = emit.registers(width)
        part = min(width, 4)
        for i in range(0, width, part):
            source = self._address((r * stride + c + i) * 4)
            call(f"hwp_move<{4 * part}>", T.address_of(values[i]), source)
        at = self.locate(self.group, self.row + r, self.col + c)
        self.epilogue.store(self.function.output, at, width, lambda e: values[e])
