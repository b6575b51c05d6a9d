"""int8 softmax of rows by fixed-point exponentials (`quantize/arithmetic.py`), vector by vector."""

from __future__ import annotations

from collections.abc import Sequence

from hwprune.lower.cpu.context import Context
from hwprune.lower.cpu.emit import split_threads
from hwprune.lower.int8 import emit
from hwprune.lower.int8.border import runs
from hwprune.lower.int8.emit import Buffer, Code, Expr, T, loop, splat, tirx
from hwprune.lower.int8.layout import padded, rows, spec_of
from hwprune.lower.int8.machine import Machine
from hwprune.lower.int8.scaling import read
from hwprune.quantize.arithmetic import INT32_MAX, INT32_MIN
from hwprune.quantize.graph import INT8_MAX, INT8_MIN, IntegerTensor, Softmax

_SUM_BITS = 12  # integer bits of the sum of exponentials
_QUARTER = 1 << 24  # of Q5.26
_FACTORS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
_SCALAR = 4  # lanes in which single numbers are computed


def softmax(
    op: Softmax, inputs: Sequence[IntegerTensor], y: IntegerTensor, machine: Machine,
    context: Context,
) -> Code:  # fmt: skip
    """Softmax over the last axis."""
    pitch = padded(y.shape[-1])

    def body(xs: list[Buffer], _: list[Buffer], out: Buffer) -> None:
        with split_threads(rows(y), context.threads) as (first, count), loop(count) as i:
            _Row(op, xs[0], out, (first + i) * pitch, y.shape[-1], machine).emit()

    specs = [spec_of(t, machine) for t in inputs]
    func = emit.build_function(machine, specs, (), spec_of(y, machine), body)
    return Code("int8.softmax", "row by row", func)


class _Row:
    """One row of `length` values from `first` on."""

    def __init__(
        self, op: Softmax, x: Buffer, y: Buffer, first: Expr, length: int, machine: Machine
    ) -> None:
        self.op, self.x, self.y, self.first, self.length = op, x, y, first, length
        self.machine, self.pitch = machine, padded(length)
        self.exponentials = emit.local((self.pitch,))
        self.total = emit.local((1,))

    def emit(self) -> None:
        """Exponentials and their sum, then everyone's share."""
        most = emit.local((1,))
        T.buffer_store(most, INT8_MIN + self.machine.offset, [0])
        with T.serial(self.length) as i:
            value = tirx.Cast("int32", self.x[self.first + i])
            T.buffer_store(most, tirx.max(most[0], value), [0])
        T.buffer_store(self.total, 0, [0])
        for start, lanes, times in runs(self.pitch, self.machine.lanes):
            with loop(times) as k:
                self._sum(start + k * lanes, lanes, most[0])
        reciprocal, bits = self._reciprocal()
        for start, lanes, times in runs(self.pitch, self.machine.lanes):
            with loop(times) as k:
                self._share(start + k * lanes, lanes, reciprocal, bits)

    def _sum(self, at: Expr, lanes: int, most: Expr) -> None:
        """Keep exponentials; -1 where a difference does not count."""
        below = read(self.x, self.first + at, lanes) - splat(most, lanes)
        index = emit.vector_index(at, lanes)
        counts = tirx.all(
            below >= splat(self.op.diff_min, lanes), index < splat(self.length, lanes)
        )
        kept = tirx.Select(counts, below, splat(0, lanes))
        shifted = tirx.shift_left(kept, splat(self.op.shift, lanes))
        made = _exp(_high(shifted, splat(self.op.multiplier, lanes), lanes), lanes)
        emit.store(self.exponentials, tirx.Select(counts, made, splat(-1, lanes)), at, lanes)
        terms = emit.local((lanes,))
        some = _rounded(emit.load(self.exponentials, at, lanes), _SUM_BITS, lanes)
        emit.store(terms, some, 0, lanes)  # of -1 that is 0
        with loop(lanes) as i:
            T.buffer_store(self.total, self.total[0] + terms[i], [0])

    def _reciprocal(self) -> tuple[Expr, Expr]:
        """2^31 over the normalised sum, and the shift that goes with it."""
        numbers, n = emit.local((2,)), _SCALAR
        zeros = emit.call("leading_zeros", 1, self.total[0])
        T.buffer_store(numbers, zeros, [0])
        fraction = tirx.bitwise_and(tirx.shift_left(self.total[0], numbers[0]), INT32_MAX)
        half = emit.local((n,))
        emit.store(half, splat(tirx.shift_right(fraction, 1) + (1 << 30), n), 0, n)
        guess = emit.local((n,))
        d = emit.load(half, 0, n)
        first = splat(1515870810, n) + _high(d, splat(-1010580540, n), n)  # 48/17 - 32/17 d
        emit.store(guess, first, 0, n)
        for _ in range(3):
            g = emit.load(guess, 0, n)
            rest = splat(1 << 29, n) - _high(d, g, n)
            emit.store(guess, g + _left(_high(g, rest, n), 2, n), 0, n)
        emit.store(guess, _left(emit.load(guess, 0, n), 1, n), 0, n)
        T.buffer_store(numbers, _SUM_BITS + 23 - numbers[0], [1])
        return guess[0], numbers[1]

    def _share(self, at: Expr, lanes: int, reciprocal: Expr, bits: Expr) -> None:
        exponentials = emit.load(self.exponentials, at, lanes)
        product = _high(splat(reciprocal, lanes), exponentials, lanes)
        share = emit.call(f"rounded_{lanes}", lanes, product, splat(bits, lanes))
        share = tirx.min(share + splat(INT8_MIN, lanes), splat(INT8_MAX, lanes))
        counts = exponentials >= splat(0, lanes)
        value = tirx.Select(counts, tirx.max(share, splat(INT8_MIN, lanes)), splat(INT8_MIN, lanes))
        stored = emit.cast(value + splat(self.machine.offset, lanes), self.machine.stored, lanes)
        emit.store(self.y, stored, self.first + at, lanes)


def _high(a: Expr, b: Expr, lanes: int) -> Expr:
    return emit.call(f"high_{lanes}", lanes, a, b)


def _rounded(x: Expr, shift: int, lanes: int) -> Expr:
    return emit.call(f"rounded_{lanes}", lanes, x, splat(shift, lanes))


def _left(x: Expr, shift: int, lanes: int) -> Expr:
    """A shift to the left that saturates."""
    shifted = tirx.shift_left(x, splat(shift, lanes))
    above, below = x > splat(INT32_MAX >> shift, lanes), x < splat(INT32_MIN >> shift, lanes)
    low = tirx.Select(below, splat(INT32_MIN, lanes), shifted)
    return tirx.Select(above, splat(INT32_MAX, lanes), low)


def _exp(x: Expr, lanes: int) -> Expr:
    """exp of Q5.26 numbers at or below zero, as Q0.31 (`exp_on_negative`)."""
    value = emit.local((lanes,))
    result = emit.local((lanes,))

    def kept(buffer: Buffer, expr: Expr) -> Expr:
        emit.store(buffer, expr, 0, lanes)
        return emit.load(buffer, 0, lanes)

    x = kept(value, x)
    within = kept(
        emit.local((lanes,)),
        tirx.bitwise_and(x, splat(_QUARTER - 1, lanes)) - splat(_QUARTER, lanes),
    )
    a = kept(emit.local((lanes,)), tirx.shift_left(within, splat(5, lanes)) + splat(1 << 28, lanes))
    square = kept(emit.local((lanes,)), _high(a, a, lanes))
    cubes = _rounded(_high(square, square, lanes), 2, lanes) + _high(square, a, lanes)
    tail = a + _rounded(_high(cubes, splat(715827883, lanes), lanes) + square, 1, lanes)
    base = splat(1895147668, lanes)  # exp(-1/8)
    found = kept(result, base + _high(tail, base, lanes))
    for bit, factor in enumerate(_FACTORS):
        has = tirx.bitwise_and(within - x, splat(_QUARTER << bit, lanes))
        times = _high(found, splat(factor, lanes), lanes)
        found = kept(result, tirx.Select(tirx.NE(has, splat(0, lanes)), times, found))
    return tirx.Select(tirx.EQ(x, splat(0, lanes)), splat(INT32_MAX, lanes), found)
