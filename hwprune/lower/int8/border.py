"""What a convolution reads: the input as it lies, or a copy with its border of zero points.

The copy also widens where a machine multiplies pairs of int16.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprune.lower.cpu.emit import split_threads
from hwprune.lower.int8 import emit
from hwprune.lower.int8.emit import Buffer, Expr, T, loop, tirx
from hwprune.lower.int8.machine import Machine

COPIED = 64  # values at a time


@dataclass(frozen=True)
class Plane:
    """An image of (height, width, pitch) values of a type; `padding` is (top, left).

    `size` is how far it is read: rows and columns, border included.
    """

    height: int
    width: int
    pitch: int
    padding: tuple[int, int]
    size: tuple[int, int]

    @property
    def inside(self) -> bool:
        """Whether nothing outside the image is read."""
        rows, columns = self.size
        return not any(self.padding) and rows <= self.height and columns <= self.width


@dataclass(frozen=True)
class Source:
    """Where pixels are: `buffer[index(row, column)]` is the first channel of one."""

    buffer: Buffer
    width: int
    pitch: int

    def index(self, row: Expr, column: Expr) -> Expr:
        """The first value of a pixel."""
        return (row * self.width + column) * self.pitch


def source_of(
    x: Buffer, plane: Plane, value: int, machine: Machine, threads: int, dtype: str
) -> Source:
    """The plane as it is read, with `value` (as it is stored) around the image."""
    if plane.inside and dtype == machine.stored:
        return Source(x, plane.width, plane.pitch)
    rows, columns = plane.size
    line = columns * plane.pitch
    copy = T.alloc_buffer((rows * line,), dtype)
    top, left = plane.padding[0], min(plane.padding[1], columns)
    copied = max(min(plane.width, columns - left), 0)
    with split_threads(rows, threads) as (first, count), loop(count) as i:
        row = first + i
        inside = tirx.all(row >= top, row < plane.height + top)
        with T.If(inside):
            with T.Then():
                _fill(copy, row * line, left * plane.pitch, value, dtype)
                start = row * line + left * plane.pitch
                from_ = (row - top) * (plane.width * plane.pitch)
                _copy(copy, start, x, from_, copied * plane.pitch, dtype)
                rest = (columns - left - copied) * plane.pitch
                _fill(copy, start + copied * plane.pitch, rest, value, dtype)
            with T.Else():
                _fill(copy, row * line, line, value, dtype)
    return Source(copy, columns, plane.pitch)


def _fill(y: Buffer, first: Expr, count: int, value: int, dtype: str) -> None:
    for start, lanes, times in runs(count):
        with loop(times) as i:
            emit.store(y, emit.splat(value, lanes, dtype), first + start + i * lanes, lanes)


def _copy(y: Buffer, first: Expr, x: Buffer, from_: Expr, count: int, dtype: str) -> None:
    for start, lanes, times in runs(count):
        with loop(times) as i:
            at = start + i * lanes
            value = emit.load(x, from_ + at, lanes)
            if str(x.dtype) != dtype:
                value = emit.cast(value, dtype, lanes)
            emit.store(y, value, first + at, lanes)


def runs(count: int, widest: int = COPIED) -> list[tuple[int, int, int]]:
    """(start, lanes, times): vectors of fewer and fewer lanes that cover so many values."""
    found, start, lanes = [], 0, widest
    while start < count:
        times = (count - start) // lanes
        if times:
            found.append((start, lanes, times))
            start += times * lanes
        lanes = max(lanes // 2, 1)
    return found
