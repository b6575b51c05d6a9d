"""Test vectors of a network in C: inputs, and what the reference makes of them; vectors.h."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from math import prod

import numpy as np

from hwprune.lower.mcu.model import CModel, array_text, pointers
from hwprune.lower.mcu.printer import C_TYPES

TOLERANCE = 1e-5  # of float32 results against PyTorch's: a share of the largest number


@dataclass(frozen=True)
class Vectors:
    """Inputs of a network and the reference's outputs, each with the test vectors in front.

    Outputs must be equal bit for bit; those in float32, where there is a `tolerance`, within that
    share of the largest number of an output; those in int8 within so many `steps`.
    """

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    tolerance: float = 0.0
    steps: int = 0

    @property
    def count(self) -> int:
        """How many test vectors there are."""
        return len(self.outputs[0])


def model_id(source: str) -> int:
    """A number that tells one model.c from another."""
    return zlib.crc32(source.encode())


def model_id_text(model: CModel) -> str:
    """model_id.h: the number by which a board says which network it runs."""
    return (
        "/* Which model.c this is (its CRC-32). */\n"
        f"#define HWPRUNE_MODEL_ID {model_id(model.source)}u\n"
    )


def vectors_text(model: CModel, vectors: Vectors) -> str:
    """vectors.h: the numbers, `run(i)` and `equal(i)` of main.c."""
    lines = [
        "/* Test vectors: inputs, and the outputs of the reference. */",
        "#include <stdint.h>",
        f"#define VECTORS {vectors.count}",
        f"#define CALLS {len(model.calls)}",
        "#if defined(__GNUC__) && defined(__arm__)",
        '#define VECTOR_SECTION __attribute__((section(".vectors")))',
        "#else",
        "#define VECTOR_SECTION",
        "#endif",
    ]
    graph = model.graph
    for names, arrays, kind in (
        (graph.inputs, vectors.inputs, "input"),
        (graph.outputs, vectors.outputs, "output"),
    ):
        for (name, pointer), array in zip(pointers(names, kind).items(), arrays, strict=True):
            size = prod(graph.by_name[name].shape)
            lines.append(
                f"VECTOR_SECTION static const {C_TYPES[str(array.dtype)]} "
                f"vector_{pointer}[VECTORS][{size}] = {{"
            )
            lines += [f"    {{{array_text(row)}}}," for row in array]
            lines.append("};")
    return "\n".join([*lines, *_functions(model, vectors)]) + "\n"


def _functions(model: CModel, vectors: Vectors) -> list[str]:
    graph = model.graph
    inputs, outputs = pointers(graph.inputs, "input"), pointers(graph.outputs, "output")
    lines = [
        f"static {C_TYPES[graph.by_name[n].dtype]} made_{p}[{prod(graph.by_name[n].shape)}];"
        for n, p in outputs.items()
    ]
    arguments = [f"vector_{p}[i]" for p in inputs.values()]
    arguments += [f"made_{p}" for p in outputs.values()]
    lines += [
        "static void run(int i) {",
        f"  hwprune_model_run({', '.join(arguments)});",
        "}",
        "static int equal(int i) {",
        "  int same = 1;",
    ]
    for k, (name, p) in enumerate(outputs.items()):
        dtype, size = graph.by_name[name].dtype, prod(graph.by_name[name].shape)
        if vectors.tolerance and dtype == "float32":
            test = f"near(made_{p}, vector_{p}[i], {size}, {vectors.tolerance!r}f)"
        elif vectors.steps and dtype == "int8":
            test = f"beside(made_{p}, vector_{p}[i], {size}, {vectors.steps})"
        else:
            test = f"memcmp(made_{p}, vector_{p}[i], sizeof made_{p}) == 0"
        lines.append(f"  same &= {test} || differs({k});")
    return [*lines, "  return same;", "}"]
