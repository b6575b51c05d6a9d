"""Plans of several stages: a pruning, and another of what it leaves, as if they were one.

In: a `Program` and a `Plan`. Out: its `Stage`s, the indices that all of them keep, and one
certificate: each stage is certified against the program that it starts from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from hwprune.couple import couple
from hwprune.coupling import Coupling
from hwprune.errors import HwpruneError
from hwprune.plan import Plan
from hwprune.program import Program, fingerprint
from hwprune.rewrite import kept_indices, rewrite
from hwprune.verify import Certificate, verify

Kept = Mapping[str, Mapping[int, np.ndarray]]


@dataclass(frozen=True)
class Stage:
    """A program, how its channels are coupled, the plan of this stage and what it makes."""

    program: Program
    coupling: Coupling
    plan: Plan
    smaller: Program


def follow(program: Program, plan: Plan, where: str = "") -> tuple[Stage, ...]:
    """Carry out a plan. PlanError, naming `where` it is from, if it was made for another model."""
    stages: list[Stage] = []
    for part in plan.stages():
        coupling = couple(program, **asdict(part.forms))
        part.check(coupling, fingerprint(program), where)
        stages.append(Stage(program, coupling, part, rewrite(program, coupling, part)))
        program = stages[-1].smaller
    return tuple(stages)


def kept_through(stages: Sequence[Stage]) -> dict[str, dict[int, np.ndarray]]:
    """The original's indices that are left of every parameter after the last stage."""
    kept: dict[str, dict[int, np.ndarray]] = {}
    for stage in stages:
        now = kept_indices(stage.coupling, stage.plan, stage.program)
        left = {str(n.target) for n in stage.smaller.module.graph.nodes if n.op == "get_attr"}
        left |= {name for name, _ in stage.smaller.module.named_parameters(remove_duplicate=False)}
        kept = {name: dims for name, dims in kept.items() if name in left}
        for name, dims in now.items():
            before = kept.setdefault(name, {})
            for dim, index in dims.items():
                before[dim] = before[dim][index] if dim in before else index
    return kept


def units_left(stages: Sequence[Stage]) -> dict[str, tuple[int, ...]]:
    """The units of the first stage's groups all of whose channels are left after the last."""
    left = kept_through(stages)
    coupling = stages[0].coupling
    kept = dict(stages[0].plan.kept)
    for group in coupling.groups:
        alive = np.isin(np.arange(group.width), kept[group.name])
        for site, index in group.index.items():
            listed = left.get(site.parameter, {}).get(site.dim)
            if listed is not None:
                alive &= np.isin(index, listed).all(axis=1)
        if alive.any():
            kept[group.name] = tuple(np.flatnonzero(alive).tolist())
    there = dict(stages[-1].smaller.module.named_parameters(remove_duplicate=False))
    for branch in coupling.branches:
        if not branch.parameters & there.keys():
            kept |= dict.fromkeys((branch.name, *branch.groups), ())
    return kept


def compose(stages: Sequence[Stage], kept: Kept) -> Plan:
    """The plan of the original that all stages come to; `kept` is what they leave.

    Raises HwpruneError where there is none.
    """
    program, coupling = stages[0].program, stages[0].coupling
    plan = Plan(fingerprint(program), units_left(stages), forms=coupling.forms)
    plan.check(coupling, fingerprint(program))
    wanted = kept_indices(coupling, plan, program)
    for name, dims in kept.items():
        found = wanted.get(name, {})
        if not all(d in found and np.array_equal(i, found[d]) for d, i in dims.items()):
            raise HwpruneError(
                "the steps removed what is no unit of the original",
                where=name,
                hint="choose the units: grouped='groups' or 'offsets', group_norm='groups'",
            )
    return plan


def certify(stages: Sequence[Stage], seed: int = 0) -> Certificate:
    """The certificate of all stages: the largest errors, passed if every one did."""
    return join([verify(s.program, s.coupling, s.plan, s.smaller, seed=seed) for s in stages])


def join(found: Sequence[Certificate]) -> Certificate:
    """One certificate of prunings one after the other: the largest errors, passed if all did."""
    worst = max(found, key=lambda c: (not c.passed, c.max_rel_error))
    if len(found) == 1:
        return worst
    gradients = [c.gradient_rel_error for c in found if c.gradient_rel_error is not None]
    return Certificate(
        worst.max_rel_error,
        "; then ".join(c.reference for c in found),
        all(c.passed for c in found),
        max(gradients, default=None),
        worst.failure,
    )
