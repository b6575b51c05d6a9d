"""A network as a file that a small C program runs: the arena, the calls in order, the weights.

In: what `relax_module` takes. Out: `FlatNetwork`; its bytes are what `flat_runner.c` reads, all
numbers int64, little-endian:

    "HWPFLAT1"
    bytes of the file, of the workspace, offset of the weights in the file,
    numbers of tensors, calls, inputs, outputs, threads
    a tensor: place (0 workspace, 1 weights), offset there, DLPack's code and bits, rank, sizes
    a call: words of its name, the name (ends with zeros), number of arguments, their tensors
    the inputs' tensors, the outputs' tensors
    the weights, from a multiple of 64 on
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from torch import fx

from hwprune.lower import parameters
from hwprune.lower.arena import Arena
from hwprune.lower.fuse import Fused
from hwprune.lower.spec import ALIGNMENT, Call, Kernel, Workload

MAGIC = b"HWPFLAT1"
WORKSPACE, WEIGHTS = 0, 1
SYMBOL = "__tvm_ffi_"  # before the names of kernels in a library
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLPack's, by NumPy's kind


@dataclass(frozen=True)
class Tensor:
    """A tensor at `offset` in the workspace or among the weights."""

    place: int
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Its bytes."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class FlatNetwork:
    """Every call as (symbol, its tensors); inputs and outputs by their tensors."""

    workspace_bytes: int
    tensors: tuple[Tensor, ...]
    calls: tuple[tuple[str, tuple[int, ...]], ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: bytes
    threads: int

    def to_bytes(self) -> bytes:
        """The file."""
        body = b"".join(map(_tensor_bytes, self.tensors))
        body += b"".join(_call_bytes(*call) for call in self.calls)
        body += _words(*self.inputs, *self.outputs)
        header = len(MAGIC) + 8 * 8
        start = _aligned(header + len(body))
        sizes = start + len(self.weights), self.workspace_bytes, start
        counts = map(len, (self.tensors, self.calls, self.inputs, self.outputs))
        words = _words(*sizes, *counts, self.threads)
        return (MAGIC + words + body).ljust(start, b"\0") + self.weights


def flatten(
    fused: Fused,
    module: fx.GraphModule,
    kernels: Mapping[Workload, Kernel],
    names: Mapping[Workload, str],
    arena: Arena,
    lanes: int,
    threads: int,
) -> FlatNetwork:
    """The network's values placed, its calls and weights in order; `names` of the kernels."""
    return _Writer(fused, module, kernels, names, arena, lanes).write(threads)


class _Writer:
    def __init__(
        self,
        fused: Fused,
        module: fx.GraphModule,
        kernels: Mapping[Workload, Kernel],
        names: Mapping[Workload, str],
        arena: Arena,
        lanes: int,
    ) -> None:
        self.fused, self.module, self.kernels, self.names = fused, module, kernels, names
        self.arena, self.lanes = arena, lanes
        self.workspace_bytes = _aligned(arena.size_bytes)
        self.tensors: list[Tensor] = []
        self.values: dict[str, int] = {}
        self.blobs: list[bytes] = []
        self.weight_bytes = 0
        self.packed: dict[object, tuple[int, ...]] = {}

    def write(self, threads: int) -> FlatNetwork:
        nodes = {n.name: n.meta["val"] for n in self.module.graph.nodes if n.op == "placeholder"}
        for name in self.fused.inputs:
            dtype = str(nodes[name].dtype).removeprefix("torch.")
            self.values[name] = self._apart(dtype, tuple(nodes[name].shape))
        inputs = tuple(self.values[name] for name in self.fused.inputs)
        calls = tuple(self._call(call) for call in self.fused.calls)
        outputs = tuple(self._read(name) for name in self.fused.outputs)
        return FlatNetwork(
            self.workspace_bytes, tuple(self.tensors), calls, inputs, outputs,
            b"".join(self.blobs), threads,
        )  # fmt: skip

    def _call(self, call: Call) -> tuple[str, tuple[int, ...]]:
        args = (*map(self._read, call.args), *self._weights(call))
        spec = call.workload.output
        shape, offset = spec.physical(self.lanes), self.arena.offsets.get(call.output)
        if offset is None:
            made = self._apart(spec.dtype, shape)
        else:
            made = self._tensor(WORKSPACE, offset, spec.dtype, shape)
        self.values[call.output] = made
        return SYMBOL + self.names[call.workload], (*args, made)

    def _read(self, name: str) -> int:
        """The tensor of a value; other shapes of a value lie where it lies."""
        if name not in self.values and name in self.fused.constants:
            array = parameters.constant(name, self.fused, self.module, self.lanes)
            self.values[name] = self._stored(array)
        elif name not in self.values:
            base = self.tensors[self._read(self.fused.aliases[name])]
            shape = self.fused.specs[name].physical(self.lanes)
            self.values[name] = self._tensor(base.place, base.offset, base.dtype, shape)
        return self.values[name]

    def _weights(self, call: Call) -> tuple[int, ...]:
        key = (call.params, call.workload)
        if key not in self.packed:
            arrays = parameters.weights(call, self.kernels, self.module)
            self.packed[key] = tuple(map(self._stored, arrays))
        return self.packed[key]

    def _stored(self, array: np.ndarray) -> int:
        offset, data = self.weight_bytes, np.ascontiguousarray(array).tobytes()
        self.blobs.append(data.ljust(_aligned(len(data)), b"\0"))
        self.weight_bytes += len(self.blobs[-1])
        return self._tensor(WEIGHTS, offset, str(array.dtype), array.shape)

    def _apart(self, dtype: str, shape: tuple[int, ...]) -> int:
        """A tensor with memory of its own."""
        made = self._tensor(WORKSPACE, self.workspace_bytes, dtype, shape)
        self.workspace_bytes += _aligned(self.tensors[made].size_bytes)
        return made

    def _tensor(self, place: int, offset: int, dtype: str, shape: Sequence[int]) -> int:
        self.tensors.append(Tensor(place, offset, dtype, tuple(shape)))
        return len(self.tensors) - 1


def _tensor_bytes(tensor: Tensor) -> bytes:
    dtype = np.dtype(tensor.dtype)
    kind = _CODES[dtype.kind], 8 * dtype.itemsize
    return _words(tensor.place, tensor.offset, *kind, len(tensor.shape), *tensor.shape)


def _call_bytes(name: str, arguments: tuple[int, ...]) -> bytes:
    words = len(name) // 8 + 1
    text = name.encode().ljust(8 * words, b"\0")
    return _words(words) + text + _words(len(arguments), *arguments)


def _words(*numbers: int) -> bytes:
    return np.array(numbers, "<i8").tobytes()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
