"""Where the rows of a product's left factor lie: rows of a matrix, or windows of an image.

Chunks of 16 bytes are copied asynchronously where memory is aligned for it; elsewhere they are put
together element by element.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from hwprune.lower.cuda import emit
from hwprune.lower.cuda.emit import Buffer, Expr, Memory, T, call, tirx
from hwprune.lower.cuda.tiles import CHUNK_BYTES


def fill_row(
    memory: Memory, start: Expr, aligned: int, length: int, where: tuple[Expr, Expr, Expr],
    chunks: int, chunk: Expr, there: Expr,
) -> None:  # fmt: skip
    """Chunk `chunk` of `length` elements from `start` on, to (tile, row, chunk) `where`.

    `aligned` is the number of bytes of which all addresses are multiples.
    """
    items = CHUNK_BYTES // memory.item_bytes
    tile, row, at = where
    if aligned >= 4:
        parts = CHUNK_BYTES // aligned
        step = items // parts
        for part in range(parts):
            index = chunk * items + part * step
            valid = tirx.And(there, index < length)
            address = memory.address(tirx.Select(valid, start + index, 0))
            call(f"hwp_fill<{chunks}, {aligned}>", tile, row, at, part, address, valid)
        return
    gather(memory, where, chunks, lambda e: (start + chunk * items + e,
           tirx.And(there, chunk * items + e < length)))  # fmt: skip


def gather(memory: Memory, where: tuple[Expr, Expr, Expr], chunks: int, element: object) -> None:
    """A chunk put together: `element(e)` is the index of its e-th element and if there is one."""
    items = CHUNK_BYTES // memory.item_bytes
    tile, row, at = where
    local = emit.registers(items, memory.dtype)
    with T.unroll(items) as e:
        index, there = element(e)  # type: ignore[operator]
        zero = tirx.const(0.0, memory.dtype)
        value = tirx.if_then_else(there, memory.buffer[tirx.Select(there, index, 0)], zero)
        T.buffer_store(local, value, [e])
    call(f"hwp_put<{chunks}>", tile, row, at, T.address_of(local[0]))


@dataclass
class Matrix:
    """Rows of `length` elements, `stride` apart."""

    memory: Memory
    rows: int
    length: int
    stride: int
    chunks: int  # of a tile's row
    count: int  # rows of a thread
    place: Buffer = None

    @property
    def row_chunks(self) -> int:
        """Chunks of 16 bytes of a row."""
        return -(-self.length * self.memory.item_bytes // CHUNK_BYTES)

    def begin(self) -> None:
        """See `Source`."""
        self.place = emit.registers(self.count, "int32")

    def prepare(self, index: Expr, row: Expr, group: Expr) -> None:
        """The row's number."""
        T.buffer_store(self.place, row, [index])

    def fill(self, index: Expr, tile: Expr, row: Expr, at: Expr, chunk: Expr) -> None:
        """See `Source`."""
        aligned = gcd(self.stride * self.memory.item_bytes, CHUNK_BYTES)
        start = self.place[index]
        there = start < self.rows
        length = -(-self.length // 8) * 8 if self.stride > self.length else self.length
        fill_row(
            self.memory, start * self.stride, aligned, length, (tile, row, at), self.chunks,
            chunk, there,
        )  # fmt: skip


@dataclass(frozen=True)
class Window:
    """A convolution's input and output planes and its window, in pixels."""

    height: int
    width: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


@dataclass
class Windows:
    """Windows of an image: taps, and channels within a tap.

    `channels` of a group, `pixel` elements from one pixel to the next; `plain` images have their
    channels first. `whole` says that a chunk lies within a tap, aligned.
    """

    memory: Memory
    window: Window
    rows: int
    channels: int
    pixel: int
    all_channels: int
    plain: bool
    whole: bool
    chunks: int
    count: int
    place: Buffer = None
    group: Expr = 0

    @property
    def row_chunks(self) -> int:
        """Chunks of 16 bytes of a row."""
        items = CHUNK_BYTES // self.memory.item_bytes
        kh, kw = self.window.kernel
        return -(-kh * kw * self.channels // items)

    def begin(self) -> None:
        """See `Source`."""
        self.place = emit.registers(3 * self.count, "int32")

    def prepare(self, index: Expr, row: Expr, group: Expr) -> None:
        """The image and the first row and column of the window."""
        w = self.window
        plane = w.out_height * w.out_width
        y, x = row % plane // w.out_width, row % w.out_width
        there = row < self.rows
        top = tirx.Select(there, y * w.stride[0] - w.padding[0], -(1 << 20))
        for i, value in enumerate((row // plane, top, x * w.stride[1] - w.padding[1])):
            T.buffer_store(self.place, value, [3 * index + i])
        self.group = group

    def fill(self, index: Expr, tile: Expr, row: Expr, at: Expr, chunk: Expr) -> None:
        """See `Source`."""
        items = CHUNK_BYTES // self.memory.item_bytes
        where = (tile, row, at)
        if not self.whole:
            gather(self.memory, where, self.chunks, lambda e: self._at(index, chunk * items + e))
            return
        start, there = self._at(index, chunk * items)
        address = self.memory.address(tirx.Select(there, start, 0))
        call(f"hwp_fill<{self.chunks}, {CHUNK_BYTES}>", tile, row, at, 0, address, there)

    def _at(self, index: Expr, k: Expr) -> tuple[Expr, Expr]:
        """Where element `k` of a window lies, and whether it is within the image."""
        w = self.window
        kh, kw = w.kernel
        tap, channel = k // self.channels, k % self.channels
        n, top, left = (self.place[3 * index + i] for i in range(3))
        y = top + tap // kw * w.dilation[0]
        x = left + tap % kw * w.dilation[1]
        inside = tirx.all(
            y >= 0, y < w.height, x >= 0, x < w.width, k < kh * kw * self.channels
        )  # fmt: skip
        channel = channel + self.group * self.channels
        if self.plain:
            at = ((n * self.all_channels + channel) * w.height + y) * w.width + x
        else:
            at = ((n * w.height + y) * w.width + x) * self.pixel + channel
        return at, inside
