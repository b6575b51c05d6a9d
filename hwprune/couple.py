"""Coupling: run label rules over a `Program`, unite labels into units, units into `Group`s.

A unit is a set of channels, on every parameter axis they reach, that can only be removed
together. What an output, an input or an unsupported operator depends on is frozen.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

from torch import fx

from hwprune.branches import find_branches
from hwprune.coupling import Axis, Branch, Coupling, Extent, Frozen, Group, Site
from hwprune.forms import AUTO, HEADS, USUAL, Forms
from hwprune.grouping import build_coupling
from hwprune.program import SYMBOLIC, Program, specialize
from hwprune.rules import Tracer, find_rule
from hwprune.rules.engine import Factors, Outputs, UnsupportedForm
from hwprune.rules.merging import merging
from hwprune.rules.probe import probe
from hwprune.rules.settle import leave_batch, settle

__all__ = ["Axis", "Branch", "Coupling", "Extent", "Frozen", "Group", "Site", "couple", "trace"]


def couple(
    program: Program,
    *,
    attention: str = HEADS,
    grouped: str = AUTO,
    group_norm: str = AUTO,
    branches: bool = False,
) -> Coupling:
    """Find which channels of a program can be removed together, and which must stay.

    The options choose among forms of units (`Forms`). Deterministic; the answer is the same for a
    program and `specialize(program)`. Raises HwpruneError for an unknown form.
    """
    forms = Forms(attention, grouped, group_norm, branches).checked()
    tracer = trace(program, forms)
    coupling = build_coupling(tracer)
    if not forms.branches:
        return coupling
    return replace(coupling, branches=find_branches(tracer.module.graph, coupling))


def trace(program: Program, forms: Forms = USUAL) -> Tracer:
    """Run the label rules over the program at the sizes of its example inputs.

    Where a product finds channels that only live together (those of a head), the rules run
    again with these being one from the start: what lies before the product then knows it too.
    """
    module = program.module if _is_concrete(program) else specialize(program).module
    tracer = Tracer(module, forms=forms)
    while True:
        _run(tracer)
        again = merging(tracer)
        if again is None:
            return tracer
        tracer = again


def _run(tracer: Tracer) -> None:
    for node in tracer.module.graph.nodes:
        if node.op == "get_attr":
            tracer.values[node] = tracer.parameter(node)
        elif node.op == "output":
            for arg in node.all_input_nodes:
                tracer.freeze_value(arg, node, "is an output of the model")
        elif node.op != "placeholder":
            tracer.values[node] = _apply(tracer, node)


def _is_concrete(program: Program) -> bool:
    """Whether every size of the graph is a plain number already."""
    nodes = [n for n in program.module.graph.nodes if n.op != "output"]
    return all(SYMBOLIC in n.meta and not isinstance(n.meta.get("val"), int) for n in nodes)


def _apply(tracer: Tracer, node: fx.Node) -> Factors | Outputs:
    """The factors of a call; what reaches one whose channels cannot be followed is frozen.

    Where an operator has no rule, random values tell whether channels pass through it.
    """
    if node.target is operator.getitem:
        source: Any = node.args[0]
        outputs = tracer.values.get(source, ())
        if isinstance(outputs, Outputs):
            return settle(tracer, node, outputs[int(node.args[1])])  # type: ignore[arg-type]
        return ()
    rule = find_rule(node) if node.op == "call_function" else None
    leave_batch(tracer, node)
    try:
        result = (rule or probe)(tracer, node)
        return result if isinstance(result, Outputs) else settle(tracer, node, result)
    except UnsupportedForm as form:
        reason = str(form) if rule is not None else "no rule for this operator"
    for arg in node.all_input_nodes:
        tracer.freeze_value(arg, node, reason)
    return ()
