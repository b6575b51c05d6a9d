"""Padding as a copy of the input into a scratch plane with a border of zeros."""

from __future__ import annotations

from hwprune.lower.cpu import emit
from hwprune.lower.cpu.emit import Buffer, Expr, T, const, loop, tirx
from hwprune.lower.cpu.geometry import Geometry


def copy_with_border(
    x: Buffer, g: Geometry, size: tuple[int, int], lanes: int | None, threads: int
) -> Buffer:
    """Planes of `size`: packed in blocks of `lanes` channels, or plain where that is None.

    The size must be what is read later and no more: TVM compacts a buffer to what is read, and
    fails where that cuts off part of the loop that writes it.
    """
    planes = g.channels if lanes is None else emit.blocks(g.channels, lanes)
    height, width = size
    top, left = g.padding[0], min(g.padding[1], width)
    copied = min(g.width, width - left)
    tail: tuple[int, ...] = () if lanes is None else (lanes,)
    padded = T.alloc_buffer((g.batch, planes, height, width, *tail), emit.real())
    with emit.split_threads(g.batch * planes * height, threads) as (first, count):
        with loop(count) as i:
            n, c, h = emit.split_index(first + i, (g.batch, planes, height))
            inside = tirx.all(h >= top, h < g.height + top)
            with T.If(inside):
                with T.Then():
                    _fill_row(padded, [n, c, h], 0, left, tail)
                    _copy_row(padded, x, [n, c, h], h - top, left, copied, tail)
                    _fill_row(padded, [n, c, h], left + copied, width - left - copied, tail)
                with T.Else():
                    _fill_row(padded, [n, c, h], 0, width, tail)
    return padded


def _fill_row(y: Buffer, at: list[Expr], first: int, count: int, tail: tuple[int, ...]) -> None:
    with loop(count) as w:
        if tail:
            emit.store_vector(y, [*at, first + w], tail[0], lambda _: const(0.0))
        else:
            T.buffer_store(y, const(0.0), [*at, first + w])


def _copy_row(
    y: Buffer, x: Buffer, at: list[Expr], h: Expr, first: int, count: int, tail: tuple[int, ...]
) -> None:
    n, c, _ = at
    if not tail:
        with T.vectorized(count) as w:
            T.buffer_store(y, x[n, c, h, w], [*at, first + w])
        return
    with loop(count) as w:
        emit.store_vector(y, [*at, first + w], tail[0], lambda lane: x[n, c, h, w, lane])
