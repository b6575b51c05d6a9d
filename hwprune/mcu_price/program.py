"""Many kernels as one bare program, each launched once between counts.

In: kernels. Out: C for the emulated board. Kernels share weights and the places in the arena of
inputs, scratch and output: what they execute does not depend on the values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwprune.lower.mcu.emit import Argument, CKernel
from hwprune.lower.mcu.memory import aligned
from hwprune.lower.mcu.model import array_text
from hwprune.lower.mcu.printer import C_TYPES, print_kernel

_NAME = "kernel_name"


def program_text(kernels: Sequence[CKernel]) -> str:
    """The C program that launches every kernel once, in order."""
    functions: dict[str, str] = {}
    pools = _Pools()
    for kernel in kernels:
        pools.hold(kernel)
    launches = []
    for kernel in kernels:
        name = functions.setdefault(print_kernel(kernel, _NAME), f"k{len(functions)}")
        given = ", ".join(map(pools.pointer, kernel.arguments))
        launches.append(f"  hwprune_start();\n  {name}({given});\n  hwprune_stop();")
    return _PROGRAM.format(
        constants="\n".join(pools.constants()),
        arena=pools.arena_bytes,
        functions="\n".join(text.replace(_NAME, name) for text, name in functions.items()),
        launches="\n".join(launches),
    )


class _Pools:
    """Memory that kernels share: the longest constants of a name, one place for each buffer."""

    def __init__(self) -> None:
        self.longest: dict[tuple[str, str], np.ndarray] = {}
        self.sizes: dict[str, int] = {}

    def hold(self, kernel: CKernel) -> None:
        """Make room for what a kernel takes."""
        constants = iter(kernel.constants)
        for argument in kernel.arguments:
            if argument.name.startswith("c"):
                array, key = next(constants), (argument.name, argument.dtype)
                if key not in self.longest or self.longest[key].size < array.size:
                    self.longest[key] = array
            else:
                size = aligned(argument.count * np.dtype(argument.dtype).itemsize)
                self.sizes[argument.name] = max(self.sizes.get(argument.name, 0), size)

    def pointer(self, argument: Argument) -> str:
        """The C expression for an argument, as `model.c` has it."""
        if argument.name.startswith("c"):
            return f"{argument.name}_{argument.dtype}"
        names = list(self.sizes)
        offset = sum(self.sizes[name] for name in names[: names.index(argument.name)])
        place, const = f"arena + {offset}", "const " * argument.const
        if argument.dtype == "int8":
            return place
        return f"({const}{C_TYPES[argument.dtype]} *)(void *)({place})"

    @property
    def arena_bytes(self) -> int:
        """What all places take."""
        return max(8, sum(self.sizes.values()))

    def constants(self) -> list[str]:
        """Definitions of the constants."""
        return [
            f"static ALIGNED const {C_TYPES[dtype]} {name}_{dtype}[{array.size}] = {{\n"
            f"    {array_text(array.reshape(-1))}}};"
            for (name, dtype), array in self.longest.items()
        ]


_PROGRAM = """\
#include "harness.h"
#include "hwprune_kernels.h"

#define ALIGNED __attribute__((aligned(8)))

{constants}

static ALIGNED int8_t arena[{arena}];

{functions}
int main(void) {{
  hwprune_harness_init();
  uint32_t state = 1;
  for (uint32_t i = 0; i < sizeof arena; ++i) {{
    state = state * 1664525u + 1013904223u;
    arena[i] = (int8_t)(state >> 24);
  }}
{launches}
  return 0;
}}
"""
