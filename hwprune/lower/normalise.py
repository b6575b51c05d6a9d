"""Normalise a graph for lowering: no in-place operators, no no-ops, constants evaluated.

In: a `Program` whose shapes are plain integers. Out: a `Program` over a new graph module with
the same node names (of the nodes that remain) and the same outputs in evaluation mode.
Parameters are shared with the original; nothing of it is changed.
"""

from __future__ import annotations

import copy

from torch import fx

from hwprune.capture import Program
from hwprune.lower.constants import evaluate_constants, evaluate_written
from hwprune.lower.functional import drop_no_ops, functionalise


def normalise(program: Program) -> Program:
    """The same function without in-place operators, no-ops and constant subgraphs.

    Raises LoweringError for what cannot be expressed so (writes through a view that is read
    elsewhere, dropout in training mode).
    """
    module = fx.GraphModule(program.module, copy.deepcopy(program.module.graph))
    evaluate_written(module)
    functionalise(module)
    drop_no_ops(module)
    evaluate_constants(module)
    module.graph.eliminate_dead_code()
    module.recompile()
    return Program(module, program.inputs, program.name, program.dynamic_batch)
