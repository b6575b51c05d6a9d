"""A network in C as a program that tests itself: its sources, and a run on the emulated board.

In: a `CModel` and test vectors. Out: files, or a `Run` with counts of instructions for every kernel
and whether every output was that of the integer reference, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from math import prod
from pathlib import Path

import numpy as np

from hwprune.emulator.program import Elf, build_elf, instructions, run_elf
from hwprune.errors import ToolchainError
from hwprune.lower.mcu.model import CModel, array_text, pointers
from hwprune.lower.mcu.printer import C_TYPES
from hwprune.quantize import reference
from hwprune.target import Target

MAIN = "main.c"
VECTORS = "vectors.h"
HALVES = "HWPRUNE_HALVES"


@dataclass(frozen=True)
class Vectors:
    """Inputs of a network and the reference's outputs, each with the test vectors in front."""

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]

    @property
    def count(self) -> int:
        """How many test vectors there are."""
        return len(self.outputs[0])


@dataclass(frozen=True)
class Run:
    """What an emulated run counted: instructions of the first vector, also for every kernel.

    `differing`: the outputs that were not the reference's, by position. `defines`: macros that
    the program was compiled with.
    """

    instructions: int
    by_call: tuple[int, ...]
    matching: int
    count: int
    elf: Elf
    differing: tuple[int, ...] = ()
    defines: tuple[str, ...] = ()

    @property
    def bit_exact(self) -> bool:
        """Whether every output was the reference's."""
        return self.matching == self.count


def make_vectors(model: CModel, inputs: Sequence[np.ndarray]) -> Vectors:
    """The reference's outputs for inputs of any batch."""
    return Vectors(tuple(inputs), reference.run(model.graph, inputs))


def random_inputs(model: CModel, count: int, seed: int = 0) -> list[np.ndarray]:
    """Random inputs over the whole range of their type (float32: normal)."""
    rng = np.random.default_rng(seed)
    arrays = []
    for name in model.graph.inputs:
        tensor = model.graph.by_name[name]
        shape = (count, *tensor.shape[1:])
        if tensor.dtype == "int8":
            arrays.append(rng.integers(-128, 128, shape).astype(np.int8))
        else:
            arrays.append(rng.standard_normal(shape).astype(np.float32))
    return arrays


def kernels_header() -> Path:
    """hwprune_kernels.h."""
    return Path(str(files("hwprune.lower.mcu") / "c" / "hwprune_kernels.h"))


def sources(model: CModel, vectors: Vectors) -> dict[str, str]:
    """The text of every file that the model brings, by name."""
    return {
        "model.c": model.source,
        "model.h": model.header,
        "hwprune_kernels.h": kernels_header().read_text(encoding="utf-8"),
        VECTORS: _vectors_text(model, vectors),
        MAIN: _main_text(model),
    }


def run_on_emulator(
    model: CModel,
    target: Target,
    vectors: Vectors,
    folder: Path,
    *,
    trace: bool = False,
    timeout_s: float = 300.0,
) -> Run:
    """Build and run in `folder`; `trace` counts every kernel and takes a few instructions for it.

    Raises ToolchainError for a missing compiler or emulator or an emulator that does not end,
    BudgetError where the program does not fit the device.
    """
    for name, text in sources(model, vectors).items():
        (folder / name).write_text(text, encoding="utf-8")
    elf, defines = _build(target, folder, ("HWPRUNE_TRACE",) if trace else ())
    text = run_elf(target, elf.path, timeout_s, accepted=(0, 1))
    return replace(parse_run(text, target, elf), defines=defines)


def _build(target: Target, folder: Path, defines: tuple[str, ...]) -> tuple[Elf, tuple[str, ...]]:
    """The program and the macros that it needs: HALVES where GCC runs out of registers."""
    parts = [folder / "model.c", folder / MAIN]
    try:
        return build_elf(target, parts, folder, defines), defines
    except ToolchainError as error:
        if "impossible constraint" not in str(error):
            raise
    defines = (*defines, HALVES)
    return build_elf(target, parts, folder, defines), defines


def parse_run(text: str, target: Target, elf: Elf) -> Run:
    """A run from what the program printed. Raises ToolchainError for anything else."""
    total, match, ticks, differing = None, None, {}, set()
    for line in text.splitlines():
        parts = line.split()
        if parts[:1] == ["kernel"]:
            ticks[int(parts[1])] = int(parts[3])
        elif parts[:1] == ["model"]:
            total = int(parts[2])
        elif parts[:1] == ["differs"]:
            differing.add(int(parts[1]))
        elif parts[:1] == ["equal"]:
            match = int(parts[1]), int(parts[3])
    if total is None or match is None:
        raise ToolchainError(f"the program on the emulated board said {text[:80]!r}")
    by_call = tuple(instructions(target, ticks[i]) for i in sorted(ticks))
    return Run(instructions(target, total), by_call, *match, elf, tuple(sorted(differing)))


def _vectors_text(model: CModel, vectors: Vectors) -> str:
    graph = model.graph
    lines = [
        "/* Test vectors: inputs, and the outputs of the integer reference. */",
        "#include <stdint.h>",
        f"#define VECTORS {vectors.count}",
        "#if defined(__GNUC__) && defined(__arm__)",
        '#define VECTOR_SECTION __attribute__((section(".vectors")))',
        "#else",
        "#define VECTOR_SECTION",
        "#endif",
    ]
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
    return "\n".join(lines) + "\n"


def _main_text(model: CModel) -> str:
    graph = model.graph
    inputs, outputs = pointers(graph.inputs, "input"), pointers(graph.outputs, "output")
    made = [
        f"static {C_TYPES[graph.by_name[n].dtype]} made_{p}[{prod(graph.by_name[n].shape)}];"
        for n, p in outputs.items()
    ]
    arguments = [f"vector_{p}[i]" for p in inputs.values()]
    arguments += [f"made_{p}" for p in outputs.values()]
    equal = "\n".join(
        f"  same &= memcmp(made_{p}, vector_{p}[i], sizeof made_{p}) == 0 || differs({k});"
        for k, p in enumerate(outputs.values())
    )
    return _MAIN.format(
        made="\n".join(made), arguments=", ".join(arguments), equal=equal, calls=len(model.calls)
    )


_MAIN = """\
/* Runs the network on its test vectors, compares bit for bit and counts instructions.
   With HWPRUNE_HOST it is a program for the host, which counts nothing. */
#include <string.h>

#include "model.h"
#include "vectors.h"

#ifdef HWPRUNE_HOST
#include <stdio.h>
#else
#include "harness.h"
#endif

{made}

static void run(int i) {{
  hwprune_model_run({arguments});
}}

static int differs(int output);

static int equal(int i) {{
  int same = 1;
{equal}
  return same;
}}

#ifdef HWPRUNE_HOST
static int differs(int output) {{
  printf("differs %d\\n", output);
  return 0;
}}

int main(void) {{
  int same = 0;
  for (int i = 0; i < VECTORS; ++i) {{
    run(i);
    same += equal(i);
  }}
  printf("equal %d of %d\\n", same, VECTORS);
  return same == VECTORS ? 0 : 1;
}}
#else
static int differs(int output) {{
  hwprune_print("differs ");
  hwprune_print_number((uint64_t)output);
  hwprune_print("\\n");
  return 0;
}}

#ifdef HWPRUNE_TRACE
static uint64_t ticks[{calls}];
void hwprune_after(int call);
void hwprune_after(int call) {{
  ticks[call] = hwprune_stop();
  hwprune_start();
}}
#endif

int main(void) {{
  hwprune_harness_init();
  hwprune_start();
  run(0);
#ifdef HWPRUNE_TRACE
  uint64_t total = 0;
  for (int call = 0; call < {calls}; ++call) {{
    total += ticks[call];
  }}
#else
  const uint64_t total = hwprune_stop();
#endif
#ifdef HWPRUNE_TRACE
  for (int call = 0; call < {calls}; ++call) {{
    hwprune_print("kernel ");
    hwprune_print_number((uint64_t)call);
    hwprune_print(" ticks ");
    hwprune_print_number(ticks[call]);
    hwprune_print("\\n");
  }}
#endif
  hwprune_print("model ticks ");
  hwprune_print_number(total);
  hwprune_print("\\n");
  int same = equal(0);
  for (int i = 1; i < VECTORS; ++i) {{
    run(i);
    same += equal(i);
  }}
  hwprune_print("equal ");
  hwprune_print_number((uint64_t)same);
  hwprune_print(" of ");
  hwprune_print_number(VECTORS);
  hwprune_print("\\n");
  return same == VECTORS ? 0 : 1;
}}
#endif
"""
