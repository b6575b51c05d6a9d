"""`IntegerGraph` + `Target` -> `CModel`: model.c and model.h, the memory plan, the kernels.

model.c holds the weights as const arrays, one function for every kernel, one static arena and
`hwprune_model_run`. It allocates nothing and needs math.h and string.h alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from hwprune.errors import BudgetError
from hwprune.lower.mcu.emit import CKernel
from hwprune.lower.mcu.memory import aligned
from hwprune.lower.mcu.printer import C_TYPES, print_kernel
from hwprune.lower.mcu.rules import kernel_for
from hwprune.lower.mcu.storage import (
    Storage,
    moves_nothing,
    plan_storage,
    scratch_name,
    tensor_bytes,
)
from hwprune.quantize.graph import IntegerGraph, IntegerTensor
from hwprune.target import Target

KERNELS, FLOATS = "hwprune_kernels.h", "hwprune_float.h"
_FLOAT = "mcu.float."  # how the rules of kernels that need FLOATS begin
_NAME = "kernel_name"
_COLUMNS = 20  # numbers in a line


@dataclass(frozen=True)
class KernelCall:
    """A call of `hwprune_model_run`: the operator that it carries out, by which rule, its cost."""

    name: str
    where: str
    rule: str
    macs: int
    weight_reads: int  # bytes of weights read
    scratch_bytes: int
    constant_bytes: int


@dataclass(frozen=True)
class CModel:
    """A network in C. Bytes: the arena, the bound that no plan undercuts, constants, caller's.

    `peak` is the call while which the most of the arena is alive.
    """

    graph: IntegerGraph
    source: str
    header: str
    calls: tuple[KernelCall, ...]
    storage: Storage
    peak: str
    constant_bytes: int

    @property
    def headers(self) -> tuple[str, ...]:
        """The files of hwprune that model.c includes."""
        return headers(self.calls)

    @property
    def arena_bytes(self) -> int:
        """Memory for everything between inputs and outputs, scratch with it."""
        return self.storage.memory.size_bytes

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        return sum(call.macs for call in self.calls)

    @property
    def weight_reads(self) -> int:
        """Bytes of weights that one run reads."""
        return sum(call.weight_reads for call in self.calls)


def lower_to_c(graph: IntegerGraph, target: Target) -> CModel:
    """Lower a network.

    Raises LoweringError for operators without a kernel, BudgetError where the arena or the
    constants alone exceed the device's memory.
    """
    kernels: list[CKernel | None] = []
    for i, op in enumerate(graph.operators):
        inputs = [graph.by_name[name] for name in op.inputs]
        whole = None if moves_nothing(graph, i) else graph.by_name[op.output]
        kernels.append(kernel_for(op, inputs, whole, target.isa) if whole else None)
    storage = plan_storage(graph, kernels)
    writer = _Writer(graph, kernels, storage)
    source = writer.source()
    calls = tuple(
        KernelCall(
            op.name,
            op.where,
            k.rule,
            k.macs,
            k.weight_reads,
            k.scratch_bytes,
            sum(array.nbytes for array in k.constants),
        )
        for op, k in zip(graph.operators, kernels, strict=True)
        if k is not None
    )
    peak = graph.operators[storage.memory.peak].name if graph.operators else ""
    constants = sum(array.nbytes for array, _ in writer.arrays.values())
    model = CModel(graph, source, writer.header(), calls, storage, peak, constants)
    _check_size(model, target)
    return model


def _check_size(model: CModel, target: Target) -> None:
    for what, size, room, hint in (
        ("SRAM", model.arena_bytes, target.sram_bytes, f"at most while {model.peak!r} runs"),
        ("flash", model.constant_bytes, target.flash_bytes, "weights and tables alone"),
    ):
        if room is not None and size > room:
            raise BudgetError(
                f"the network needs {size} bytes of {what}, {target.name} has {room}: "
                f"{size - room} too many ({hint})",
                hint="prune further, or choose a larger device",
            )


def headers(calls: Sequence[KernelCall | CKernel]) -> tuple[str, ...]:
    """The files of hwprune that kernels need."""
    if any(call.rule.startswith(_FLOAT) for call in calls):
        return (KERNELS, FLOATS)
    return (KERNELS,)


class _Writer:
    """Text of model.c and model.h. `arrays`: constants by content, with their names."""

    def __init__(
        self, graph: IntegerGraph, kernels: Sequence[CKernel | None], storage: Storage
    ) -> None:
        self.graph, self.kernels, self.storage = graph, kernels, storage
        self.arrays: dict[tuple[str, bytes], tuple[np.ndarray, str]] = {}
        self.functions: dict[str, str] = {}

    def source(self) -> str:
        made = [kernel for kernel in self.kernels if kernel is not None]
        calls = [self._call(i, k) for i, k in enumerate(self.kernels) if k is not None]
        functions = "\n".join(text.replace(_NAME, name) for text, name in self.functions.items())
        arrays = "\n".join(_array(array, name) for array, name in self.arrays.values())
        arena = self.storage.memory.size_bytes
        arena_text = f"static HWPRUNE_ALIGNED int8_t arena[{arena}];\n" if arena else ""
        body = "\n".join(f"{call}\n  HWPRUNE_AFTER({i});" for i, call in enumerate(calls))
        return _SOURCE.format(
            name=_comment(self.graph.name),
            includes="\n".join(f'#include "{name}"' for name in headers(made)),
            arrays=arrays,
            arena=arena_text,
            functions=functions,
            signature=self._signature(),
            body=body,
        )

    def header(self) -> str:
        tensors = []
        for kind, names in (("INPUT", self.graph.inputs), ("OUTPUT", self.graph.outputs)):
            for i, name in enumerate(names):
                tensor = self.graph.by_name[name]
                prefix = f"HWPRUNE_MODEL_{kind}" + (str(i) if len(names) > 1 else "")
                tensors.append(f"/* {_comment(name)}: {tensor.dtype} {_shape(tensor)} */")
                tensors.append(f"#define {prefix}_SIZE {prod(tensor.shape)}")
                if tensor.dtype == "int8":
                    tensors.append(f"#define {prefix}_SCALE {np.float32(tensor.scale)!s}f")
                    tensors.append(f"#define {prefix}_ZERO_POINT ({tensor.zero_point})")
        return _HEADER.format(
            name=_comment(self.graph.name),
            tensors="\n".join(tensors),
            arena=self.storage.memory.size_bytes,
            signature=self._signature(),
        )

    def _signature(self) -> str:
        parts = [
            f"const {C_TYPES[self.graph.by_name[n].dtype]} *{p}"
            for n, p in pointers(self.graph.inputs, "input").items()
        ] + [
            f"{C_TYPES[self.graph.by_name[n].dtype]} *{p}"
            for n, p in pointers(self.graph.outputs, "output").items()
        ]
        return f"void hwprune_model_run({', '.join(parts)})"

    def _call(self, index: int, kernel: CKernel) -> str:
        op = self.graph.operators[index]
        text = print_kernel(kernel, _NAME)
        name = self.functions.setdefault(text, f"k{len(self.functions)}_{op.kind}")
        constants = iter(kernel.constants)
        inputs = iter(op.inputs)
        arguments, taken = [], 0  # bytes of scratch
        for argument in kernel.arguments:
            if argument.name == "y":
                arguments.append(self._pointer(op.output, const=False))
            elif argument.name.startswith("s"):
                offset = self.storage.memory.offsets[scratch_name(index)] + taken
                taken += aligned(argument.count * np.dtype(argument.dtype).itemsize)
                kind = C_TYPES[argument.dtype]
                arguments.append(f"({kind} *)(void *)(arena + {offset})")
            elif argument.name.startswith("x"):
                arguments.append(self._pointer(next(inputs), const=True))
            else:
                arguments.append(self._constant(next(constants)))
        return f"  {name}({', '.join(arguments)}); /* {_comment(op.name)} */"

    def _pointer(self, tensor: str, const: bool) -> str:
        outside = pointers(self.graph.inputs, "input") | pointers(self.graph.outputs, "output")
        if tensor in outside:
            return outside[tensor]
        offset = self.storage.memory.offsets[self.storage.place[tensor]]
        dtype = self.graph.by_name[tensor].dtype
        if dtype == "int8":
            return f"arena + {offset}"
        return f"({'const ' * const}{C_TYPES[dtype]} *)(void *)(arena + {offset})"

    def _constant(self, array: np.ndarray) -> str:
        key = (str(array.dtype), array.tobytes())
        _, name = self.arrays.setdefault(key, (array, f"constant_{len(self.arrays)}"))
        return name


def pointers(names: Sequence[str], kind: str) -> dict[str, str]:
    """The C parameter of every input or output."""
    return {name: kind + (str(i) if len(names) > 1 else "") for i, name in enumerate(names)}


def array_text(array: np.ndarray) -> str:
    """The numbers of an array in C."""
    # -2147483648 is no literal of C: its minus is applied to a number that does not fit.
    if array.dtype == np.float32:
        numbers = [f"{n!s}f" for n in array.reshape(-1)]
    else:
        numbers = [
            str(n) if n != -(1 << 31) else "(-2147483647 - 1)" for n in array.reshape(-1).tolist()
        ]
    lines = [", ".join(numbers[i : i + _COLUMNS]) for i in range(0, len(numbers), _COLUMNS)]
    return ",\n    ".join(lines)


def _array(array: np.ndarray, name: str) -> str:
    kind = C_TYPES[str(array.dtype)]
    return (
        f"static HWPRUNE_ALIGNED const {kind} {name}[{array.size}] = {{\n    {array_text(array)}}};"
    )


def _shape(tensor: IntegerTensor) -> str:
    return "x".join(map(str, tensor.shape)) + f", {tensor_bytes(tensor)} bytes"


def _comment(text: str) -> str:
    return text.replace("*/", "* /")


_SOURCE = """\
/* {name}: a network compiled by hwprune. */
#include "model.h"

{includes}

#if defined(__GNUC__)
#define HWPRUNE_ALIGNED __attribute__((aligned(8)))
#else
#define HWPRUNE_ALIGNED _Alignas(8)
#endif

/* Called after every kernel where a program counts what each of them costs. */
#ifdef HWPRUNE_TRACE
void hwprune_after(int call);
#define HWPRUNE_AFTER(call) hwprune_after(call)
#else
#define HWPRUNE_AFTER(call) ((void)0)
#endif

{arrays}

{arena}
{functions}
{signature} {{
{body}
}}
"""

_HEADER = """\
/* {name}: a network compiled by hwprune. Not reentrant: it has one arena. */
#ifndef HWPRUNE_MODEL_H
#define HWPRUNE_MODEL_H
#include <stdint.h>

/* int8: real = SCALE * (integer - ZERO_POINT). Images are height x width x channels. */
{tensors}
/* Bytes of SRAM between input and output, all of them static. */
#define HWPRUNE_MODEL_ARENA_BYTES {arena}

#ifdef __cplusplus
extern "C" {{
#endif
{signature};
#ifdef __cplusplus
}}
#endif

#endif
"""
