"""Working along a row of any length: whole vectors, then the rest; and reductions of a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hwprune.lower.cpu import emit
from hwprune.lower.cpu.emit import Buffer, Expr, T, const, loop
from hwprune.lower.cpu.maths import exp

Function = Callable[[Expr], Expr]
Action = Callable[[Expr], None]
LOWEST = -3.4e38
FAINTEST = -80.0  # e**-80 is 2e-35
PARTS = 4  # partial results side by side hide the latency of the additions


@dataclass(frozen=True)
class Row:
    """`size` elements along the last axis of a buffer."""

    buffer: Buffer
    at: tuple[Expr, ...]
    size: int
    lanes: int

    def __getitem__(self, column: Expr) -> Expr:
        return self.buffer[(*self.at, column)]


def each(size: int, lanes: int, body: Callable[[Expr], None]) -> None:
    """`body(column)` for every column of a row, by vectors as far as they go."""
    whole = size // lanes
    if whole:
        with loop(whole) as i, T.vectorized(lanes) as lane:
            body(i * lanes + lane)
    if size % lanes:
        with T.serial(size % lanes) as i:
            body(whole * lanes + i)


def power(x: Expr) -> Expr:
    """e**x for a softmax: nothing, rather than numbers too small for fast arithmetic."""
    return emit.tirx.Select(x > const(FAINTEST), exp(x), const(0.0))


def local(value: Expr) -> Buffer:
    """A value computed here, once, as a buffer of one element."""
    buffer = T.alloc_buffer((1,), "float32", scope="local", annotations=emit.ON_STACK)
    T.buffer_store(buffer, value, [0])
    return buffer


def across(vectors: Buffer, at: tuple[Expr, ...], lanes: int, op: str = "sum") -> Expr:
    """The lanes of a vector reduced to one value, by halves."""
    values = [vectors[(*at, lane)] for lane in range(lanes)]
    while len(values) > 1:
        pairs = list(zip(values[: len(values) // 2], values[len(values) // 2 :], strict=True))
        values = [a + b if op == "sum" else emit.tirx.max(a, b) for a, b in pairs]
    return values[0]


def reduce(row: Row, value: Function, op: str = "sum") -> Expr:
    """The sum, or the largest, of `value(x)` over the elements of a row."""
    combine = emit.tirx.max if op == "max" else lambda a, b: a + b
    start = const(LOWEST if op == "max" else 0.0)
    lanes, whole = row.lanes, row.size // row.lanes
    parts = T.alloc_buffer((PARTS, lanes), "float32", scope="local", annotations=emit.ON_STACK)
    for part in range(PARTS):
        emit.store_vector(parts, [part], lanes, lambda _: start)

    def add(part: int, block: Expr) -> None:
        with T.vectorized(lanes) as lane:
            total = combine(parts[part, lane], value(row[block * lanes + lane]))
            T.buffer_store(parts, total, [part, lane])

    if whole >= PARTS:
        with loop(whole // PARTS) as i:
            for part in range(PARTS):
                add(part, i * PARTS + part)
    for block in range(whole // PARTS * PARTS, whole):
        add(block % PARTS, block)
    with T.vectorized(lanes) as lane:
        pairs = [combine(parts[i, lane], parts[i + 1, lane]) for i in (0, 2)]
        T.buffer_store(parts, combine(*pairs), [0, lane])
    result = local(across(parts, (0,), lanes, op))
    if row.size % lanes:
        with loop(row.size % lanes) as i:
            T.buffer_store(result, combine(result[0], value(row[whole * lanes + i])), [0])
    return result[0]
