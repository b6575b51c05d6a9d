"""The kernel calls of a network as its target runs them: packed for vectors, or channels last.

In: a folded `Program`, a `Target`. Out: `Fused`. What is priced and compiled comes from here.
"""

from __future__ import annotations

from hwprune.capture import Program
from hwprune.lower.fuse import Fused, fuse_graph
from hwprune.lower.half import halved
from hwprune.lower.precision import channels_last
from hwprune.target import FLOAT16, Target


def fuse_for(program: Program, target: Target) -> Fused:
    """The kernel calls of a folded program in the target's `dtype`; on a GPU channels last.

    Raises LoweringError for what `fuse_graph` and `halved` raise it.
    """
    if target.kind == "cuda":
        return channels_last(fuse_graph(program, joins=False), target.dtype)
    fused = fuse_graph(program)
    return halved(fused, program) if target.dtype == FLOAT16 else fused
