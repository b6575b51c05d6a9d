"""Writing TIR by hand: vectors and loops over threads, for every CPU schedule rule.

The rules write their loops directly, so that the register tile, the order of the reduction and
what a thread does are exactly what the rule says. In: TVM's builder. Out: statements and
expressions of the function under construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hwprune.lower.cpu.context import Context as Context
from hwprune.lower.spec import ALIGNMENT, TensorSpec, Workload
from hwprune.target import FLOAT16, FLOAT32
from hwprune.tvm_runtime import load_tvm

load_tvm()

from tvm import tirx  # noqa: E402
from tvm.script.ir_builder import IRBuilder  # noqa: E402
from tvm.tirx.script.builder import ir as T  # noqa: E402, N812

PIECES = 6  # of a thread's share of the work at most: what another thread may take
LINE = 16  # int32 in a cache line
TAKE = """
define linkonce_odr i32 @hwprune_take(ptr %taken) alwaysinline nounwind {
  %piece = atomicrmw add ptr %taken, i32 1 monotonic
  ret i32 %piece
}
"""

AHEAD = 32  # steps of a reduction by which weights that stream from memory are fetched early

Expr = Any
Buffer = Any

_REAL: ContextVar[str] = ContextVar("real", default=FLOAT32)

# Keep small local arrays on the stack, where LLVM turns them into registers; without it TVM moves
# arrays above 1 KiB to the heap.
ON_STACK = {"disable_lower_builtin": True}


def blocks(channels: int, lanes: int) -> int:
    """Vectors needed for that many channels."""
    return -(-channels // lanes)


def step(depth: int, most: int) -> int:
    """Steps of a reduction to unroll, so that counting costs little: a divisor up to `most`."""
    return math.gcd(depth, most)


def real() -> str:
    """The floating-point type of the function under construction."""
    return _REAL.get()


@contextmanager
def computing(dtype: str) -> Iterator[None]:
    """What is written within computes in this floating-point type."""
    before = _REAL.set(dtype)
    try:
        yield
    finally:
        _REAL.reset(before)


def cast(value: Expr, dtype: str) -> Expr:
    """A value in another floating-point type."""
    return value if str(value.ty.dtype) == dtype else tirx.Cast(dtype, value)


def local(shape: tuple[int, ...], dtype: str = "") -> Buffer:
    """An array that LLVM turns into registers."""
    return T.alloc_buffer(shape, dtype or real(), scope="local", annotations=ON_STACK)


def build_function(
    name: str,
    inputs: tuple[tuple[int, ...], ...],
    params: tuple[tuple[int, ...], ...],
    output: tuple[int, ...],
    body: Callable[[list[Buffer], list[Buffer], Buffer], None],
    read: str = "",
) -> Any:
    """A PrimFunc with buffers of `real()`: inputs, params, output, and the body's statements.

    `read`: the type of the inputs, where it is another one.
    """
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            with computing(read or real()):
                xs = [T.arg(f"x{i}", _placed(s)) for i, s in enumerate(inputs)]
            ps = [T.arg(f"p{i}", T.buffer(s, real())) for i, s in enumerate(params)]
            y = T.arg("y", _placed(output))
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
            body(xs, ps, y)
    return builder.get()


def _placed(shape: tuple[int, ...]) -> Any:
    """A buffer that may lie anywhere in an arena, on a cache line."""
    return T.buffer(shape, real(), offset_factor=ALIGNMENT // _item_bytes())


def _item_bytes() -> int:
    return 2 if real() == FLOAT16 else 4


def physical_inputs(workload: Workload, lanes: int) -> tuple[tuple[int, ...], ...]:
    """The shapes of the inputs in memory."""
    return tuple(t.physical(lanes) for t in workload.inputs)


def store_vector(
    buffer: Buffer, index: list[Expr], lanes: int, value: Callable[[Expr], Expr]
) -> None:
    """`buffer[*index, 0:lanes] = value(lane)` as one vector store."""
    with T.vectorized(lanes) as lane:
        T.buffer_store(buffer, value(lane), [*index, lane])


def held(count: int, lanes: int, value: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    """`value(i, lane)` of `count` vectors, each loaded once and held in a register."""
    vectors = local((count, lanes))
    with unroll(count) as i:
        store_vector(vectors, [i], lanes, lambda lane: value(i, lane))
    return lambda i, lane: vectors[i, lane]


@contextmanager
def split_threads(extent: int, threads: int, pieces: int = PIECES) -> Iterator[tuple[Expr, Expr]]:
    """Run the body for pieces (first, count) of `extent` equal units of work until all are done."""
    with share_threads(extent, threads, pieces) as (_, first, count):
        yield first, count


@contextmanager
def share_threads(
    extent: int, threads: int, pieces: int = PIECES
) -> Iterator[tuple[Expr, Expr, Expr]]:
    """As `split_threads`, with the number of the thread first.

    Each thread does the pieces of its own share in order, near what it has in its caches, and
    then takes what is left of the others': a core that others use too delays nobody for long.
    `pieces` a thread at most, fewer where starting a piece has its price.
    """
    workers = min(threads, extent)
    if workers <= 1:
        yield 0, 0, extent
        return
    size = max(extent // (workers * pieces), 1)
    pieces = -(-extent // size)
    taken = T.alloc_buffer((workers, LINE), "int32", scope="local", annotations=ON_STACK)
    for k in range(workers):
        T.buffer_store(taken, k * pieces // workers, [k, 0])
    with T.attr(0, "pragma_import_llvm", TAKE), T.parallel(workers) as worker:
        mine = T.alloc_buffer((2,), "int32", scope="local", annotations=ON_STACK)
        T.buffer_store(mine, 0, [1])
        # Not a while loop: TVM frees before its end what was allocated in it.
        with T.serial(pieces + workers), T.If(mine[1] < workers), T.Then():
            owner = (worker + mine[1]) % workers
            T.buffer_store(mine, _take(taken, owner), [0])
            with T.If(mine[0] < (owner + 1) * pieces // workers):
                with T.Then():
                    first = mine[0] * size
                    yield worker, first, tirx.min(size, extent - first) if extent % size else size
                with T.Else():
                    T.buffer_store(mine, mine[1] + 1, [1])


def _take(taken: Buffer, owner: Expr) -> Expr:
    """The next piece of a share that nobody has taken."""
    return T.call_extern("int32", "hwprune_take", T.address_of(taken[owner, 0]))


def prefetch(buffer: Buffer, index: list[Expr], level: int) -> None:
    """Bring the cache line of an element into a level of cache; it may lie past the buffer's end.

    For weights that stream from memory: hardware follows a stream only to the end of its page.
    """
    address = T.address_of(buffer[tuple(index)])
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch.p0", address, 0, 4 - level, 1))


def line_vectors(lanes: int) -> int:
    """Vectors in a cache line."""
    return max(ALIGNMENT // (_item_bytes() * lanes), 1)


def balance(count: int, threads: int) -> float:
    """Share of the threads' time that is useful when `count` equal pieces are split."""
    workers = min(count, threads)
    return count / (-(-count // workers) * threads)


def split_index(index: Expr, extents: tuple[int, ...]) -> list[Expr]:
    """A flat index as one index per extent."""
    parts: list[Expr] = []
    for size in reversed(extents[1:]):
        parts.append(index % size)
        index = index // size
    return [index, *reversed(parts)]


class loop:  # noqa: N801 - reads as the statement it makes
    """`with loop(n) as i`: a serial loop; no loop at all for n == 1."""

    frame = staticmethod(T.serial)

    def __init__(self, extent: Expr) -> None:
        single = isinstance(extent, int) and extent == 1
        self._frame = None if single else self.frame(extent)

    def __enter__(self) -> Expr:
        return 0 if self._frame is None else self._frame.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._frame is not None:
            self._frame.__exit__(*error)


class unroll(loop):  # noqa: N801 - reads as the statement it makes
    """`with unroll(n) as i`: unrolled by TVM, after the statement was vectorised once."""

    frame = staticmethod(T.unroll)


def const(value: float) -> Expr:
    """A constant of `real()`."""
    return tirx.const(value, real())


def is_float(spec: TensorSpec) -> bool:
    """Whether the rules here can handle the tensor."""
    return spec.dtype in (FLOAT32, FLOAT16) and all(size > 0 for size in spec.shape)
