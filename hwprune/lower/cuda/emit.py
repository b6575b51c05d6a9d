"""Writing TIR for CUDA: flat indices, vectors of up to 16 bytes, device functions.

In: TVM's builder. Out: statements and expressions of the kernel under construction. Values are
computed in float32 and stored in the tensors' own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

from hwprune.lower.spec import ALIGNMENT, TensorSpec, Workload
from hwprune.tvm_runtime import load_tvm

load_tvm()

from tvm import tirx  # noqa: E402
from tvm.script.ir_builder import IRBuilder  # noqa: E402
from tvm.tirx.script.builder import ir as T  # noqa: E402, N812

Expr = Any
Buffer = Any

LAUNCH = "hwprune.launch"  # of a PrimFunc: `Function.started`
WIDEST = 16  # bytes of a thread's load
THREADS = 256  # of a block of independent threads
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4}
FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Memory:
    """A tensor of the function by flat indices, read as float32 and written from it."""

    shape: tuple[int, ...]
    dtype: str
    buffer: Buffer

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return ITEM_BYTES[self.dtype]

    def __getitem__(self, index: Expr) -> Expr:
        return as_float(self.buffer[index], self.dtype)

    def address(self, index: Expr) -> Expr:
        """The address of an element."""
        return T.address_of(self.buffer[index])

    def store(self, index: Expr, value: Expr) -> None:
        """Write one element."""
        T.buffer_store(self.buffer, as_type(value, self.dtype), [index])

    def load_vector(
        self, index: Expr, count: int, there: Expr | None = None
    ) -> Callable[..., Expr]:
        """Elements from `index` on by the widest loads; zeros where `there` does not hold."""
        local = registers(count, self.dtype)
        for i, width in self._parts(count):
            where = T.address_of(local[i]), self.address(index + i)
            if there is None:
                call(f"hwp_move<{width}>", *where)
            else:
                call(f"hwp_move_or_zero<{width}>", *where, there)
        return lambda e: as_float(local[e], self.dtype)

    def _parts(self, count: int) -> list[tuple[int, int]]:
        """(first element, bytes) of the moves of so many elements."""
        step = min(count, WIDEST // self.item_bytes)
        return [(i, step * self.item_bytes) for i in range(0, count, step)]

    def store_vector(self, index: Expr, count: int, value: Callable[[Expr], Expr]) -> None:
        """`value(e)` to the elements from `index` on by one store."""
        if count == 1:
            self.store(index, value(0))
            return
        local = registers(count, self.dtype)
        with T.unroll(count) as e:
            T.buffer_store(local, as_type(value(e), self.dtype), [e])
        for i, width in self._parts(count):
            call(f"hwp_move<{width}>", self.address(index + i), T.address_of(local[i]))


def call(name: str, *arguments: Expr) -> None:
    """A statement that calls a device function."""
    T.evaluate(T.call_extern("void", name, *arguments))


def value_of(name: str, *arguments: Expr) -> Expr:
    """A device function's float32 result."""
    return T.call_extern("float32", name, *arguments)


def barrier() -> None:
    """All threads of the block meet."""
    T.evaluate(T.call_extern("void", "__syncthreads"))


def registers(count: int, dtype: str = "float32") -> Buffer:
    """An array of a thread's own."""
    return T.alloc_buffer((count,), dtype, scope="local")


def as_float(x: Expr, dtype: str) -> Expr:
    """A value of that dtype in float32."""
    return x if dtype == "float32" else tirx.Cast("float32", x)


def as_type(x: Expr, dtype: str) -> Expr:
    """A float32 value in another type."""
    return x if dtype == "float32" else tirx.Cast(dtype, x)


def const(value: float) -> Expr:
    """A float32 constant."""
    return tirx.const(value, "float32")


@dataclass(frozen=True)
class Shared:
    """float32 shared by a block, behind device functions: TVM puts no barriers of its own."""

    memory: Buffer

    @staticmethod
    def allocate(count: int) -> Shared:
        """So many floats."""
        return Shared(T.alloc_buffer((4 * count,), "uint8", scope="shared.dyn"))

    def __getitem__(self, index: Expr) -> Expr:
        return value_of("hwp_get", T.address_of(self.memory[index * 4]))

    def store(self, index: Expr, value: Expr) -> None:
        """Write one."""
        call("hwp_set", T.address_of(self.memory[index * 4]), value)


def split_index(index: Expr, extents: Sequence[int]) -> list[Expr]:
    """A flat index as one index per extent."""
    parts: list[Expr] = []
    for size in reversed(extents[1:]):
        parts.append(index % size)
        index = index // size
    return [index, *reversed(parts)]


def vector(extent: int, dtype: str) -> int:
    """Elements of the widest load of which rows of that length are a multiple."""
    return gcd(extent, WIDEST // ITEM_BYTES[dtype])


def row_length(spec: TensorSpec) -> int:
    """Elements that lie one after the other in the last dimension of memory."""
    return spec.physical(1)[-1]


@dataclass
class Function:
    """The tensors of the function under construction, and how its kernel starts."""

    inputs: list[Memory]
    params: list[Memory]
    output: Memory
    started: tuple[int, int, int, int] = (0, 0, 0, 0)  # blocks in x and y, threads, shared bytes

    @contextmanager
    def launch(
        self, blocks: int, threads: int, *, groups: int = 1, shared_bytes: int = 0
    ) -> Iterator[tuple[Expr, Expr, Expr]]:
        """The kernel's body, given the block, the group (blockIdx.y) and the thread."""
        self.started = (blocks, groups, threads, shared_bytes)
        with (
            T.launch_thread("blockIdx.x", blocks) as block,
            T.launch_thread("blockIdx.y", groups) as group,
            T.launch_thread("threadIdx.x", threads) as thread,
        ):
            yield block, group, thread


def build_function(
    workload: Workload,
    params: Sequence[tuple[tuple[int, ...], str]],
    body: Callable[[Function], None],
) -> Any:
    """A PrimFunc of inputs, `params` (shape, dtype) and output; the body launches its threads."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(workload.op)
            xs = [_argument(f"x{i}", s.physical(1), s.dtype) for i, s in enumerate(workload.inputs)]
            ps = [_argument(f"p{i}", *p, placed=False) for i, p in enumerate(params)]
            output = workload.output
            y = _argument("y", output.physical(1), output.dtype)
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
            function = Function([_flat(x) for x in xs], [_flat(p) for p in ps], _flat(y))
            body(function)
    return builder.get().with_attr(LAUNCH, list(function.started))


def _argument(name: str, shape: tuple[int, ...], dtype: str, *, placed: bool = True) -> Buffer:
    """A parameter; one that is `placed` may lie anywhere in an arena, on a cache line."""
    options = {"offset_factor": ALIGNMENT // ITEM_BYTES[dtype]} if placed else {}
    return T.arg(name, T.buffer(shape, dtype, **options))


def _flat(buffer: Buffer) -> Memory:
    """The same memory by flat indices."""
    shape = tuple(int(size) for size in buffer.shape)
    flat = T.decl_buffer(
        (prod(shape),), str(buffer.dtype), data=buffer.data, elem_offset=buffer.elem_offset
    )
    IRBuilder.name(f"{buffer.name}_flat", flat)
    return Memory(shape, str(buffer.dtype), flat)


def is_ours(spec: TensorSpec) -> bool:
    """Whether the rules here can handle the tensor."""
    return spec.dtype in FLOATS and all(size > 0 for size in spec.shape)
