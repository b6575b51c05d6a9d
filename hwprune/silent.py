"""A user's own module made smaller where residual branches are gone: they stay, and compute zeros.

In: the module, its dense program, a plan and the smaller program. Out: the module, which calls
every layer that its Python was written with; of silent branches one unit is left, or all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import nn

from hwprune.compare import TOLERANCE, random_inputs
from hwprune.coupling import Branch
from hwprune.errors import ModelError
from hwprune.inplace import apply_in_place, difference, outputs
from hwprune.plan import Plan
from hwprune.program import Program, fingerprint
from hwprune.rewrite import rewrite
from hwprune.stages import Stage, follow, units_left
from hwprune.verify import double


def apply_plan_to(model: nn.Module, dense: Program, plan: Plan, smaller: Program) -> nn.Module:
    """Make `model`, which `dense` was captured from, the smaller network; returns it.

    Raises ModelError as `apply_in_place` does, and where a branch that is gone cannot be silent: an
    operation within makes something of nothing. The model is then as it was.
    """
    if all(units for part in plan.stages() for units in part.kept.values()):
        return apply_in_place(model, dense, smaller)
    stages = follow(dense, plan)
    try:
        return apply_in_place(model, dense, _with_silent_branches(stages, smaller))
    except ModelError as error:  # an `nn.MultiheadAttention` has all of its heads
        try:
            whole = _with_silent_branches(stages, smaller, whole=True)
            return apply_in_place(model, dense, whole)
        except ModelError:
            raise error from None


def _with_silent_branches(
    stages: Sequence[Stage], smaller: Program, *, whole: bool = False
) -> Program:
    """A program that computes what the smaller one does, with the branches that are gone from it.

    What only a removed branch reads is zero, one unit of a group wide or `whole`.
    """
    dense, coupling, kept = stages[0].program, stages[0].coupling, units_left(stages)
    left = {name: width if whole else 1 for name, width in coupling.full.items()}
    there = {name: units or tuple(range(left[name])) for name, units in kept.items()}
    program = rewrite(dense, coupling, Plan(fingerprint(dense), there, forms=coupling.forms))
    gone = coupling.removed(kept)
    _fill(program, smaller, frozenset().union(*(b.parameters for b in gone)))
    _check(program, smaller, gone)
    return program


def _fill(program: Program, smaller: Program, silent: Collection[str]) -> None:
    """Give a program the smaller one's tensors, and zeros for what is `silent`."""
    given = smaller.module.state_dict()
    with torch.no_grad():
        for name, tensor in program.module.state_dict(keep_vars=True).items():
            if name in given and given[name].shape != tensor.shape:
                raise _refusal("its stages cut a unit in parts", name)
            if name in given:
                tensor.copy_(given[name])
            elif name in silent:
                tensor.zero_()


def _check(program: Program, smaller: Program, gone: Collection[Branch]) -> None:
    """ModelError unless both compute the same, in float64."""
    inputs = random_inputs(smaller, torch.Generator().manual_seed(1))
    wanted, found = (outputs(double(p), inputs) for p in (smaller, program))
    if not difference(wanted, found) <= TOLERANCE:  # NaN fails
        names = ", ".join(b.name for b in gone)
        raise _refusal("it adds something even where its parameters are zero", names)


def _refusal(reason: str, where: str) -> ModelError:
    return ModelError(
        f"a model cannot have a branch that was removed whole as one that is silent: {reason}",
        where=where,
        hint="take result.module or model.pt2, or prune without branches",
    )
