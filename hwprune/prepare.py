"""A network before a budget is applied: coupled, fused, with candidate widths and their costs.

In: a `Program`, a `Target`, threads. Out: a `Prepared` network; and the table it is measured into.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hwprune.budget import MACS
from hwprune.capture import Program, fingerprint, specialize
from hwprune.cost import Cost
from hwprune.counted import macs_costs, params_costs
from hwprune.couple import couple
from hwprune.coupling import Coupling
from hwprune.lower import fold_batch_norm
from hwprune.lower.for_target import fuse_for
from hwprune.lower.limits import check_calls
from hwprune.lower.spec import Workload
from hwprune.measure import Measured
from hwprune.obtain import obtain, open_table
from hwprune.plan import Plan
from hwprune.price import finer, required
from hwprune.progress import Advance
from hwprune.remote.measure import BoardTable
from hwprune.rewrite import rewrite
from hwprune.table import LatencyTable
from hwprune.target import Target
from hwprune.workload import Site, sites, width_candidates

__all__ = ["Prepared", "measure_kernels", "open_table", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """A network before a budget is applied: its groups, kernels, candidate widths and costs."""

    program: Program
    coupling: Coupling
    target: Target
    threads: int
    sites: tuple[Site, ...]
    candidates: Mapping[str, tuple[int, ...]]
    macs: tuple[Cost, ...]
    params: tuple[Cost, ...]

    @property
    def full(self) -> dict[str, int]:
        """Every group at its full width, every branch there."""
        return self.coupling.full

    @property
    def gates(self) -> dict[str, str]:
        """The branch that each group lies in, where there is one."""
        return self.coupling.gates

    @property
    def stepped(self) -> bool:
        """Whether latency is a staircase over widths that a few of them do not show: on GPUs."""
        return self.target.kind == "cuda"

    def dense(self, resource: str) -> float:
        """What the dense network takes: MACs or parameters."""
        costs = self.macs if resource == MACS else self.params
        return sum(cost.at(self.full) for cost in costs)


def prepare(program: Program, target: Target, threads: int, **forms: Any) -> Prepared:
    """Couple the channels, fuse the kernels and tabulate what does not need measuring.

    `forms`: of the units, as `couple` takes them.
    """
    specialized = specialize(program)
    coupling = couple(specialized, **forms)
    folded = fold_batch_norm(specialized)
    calls = fuse_for(folded, target).calls
    check_calls(calls, folded, target.lanes)
    found = sites(calls, coupling, folded)
    candidates = {g.name: width_candidates(g, coupling, target) for g in coupling.groups}
    candidates |= {branch.name: (0, 1) for branch in coupling.branches}
    return Prepared(
        program,
        coupling,
        target,
        threads,
        found,
        candidates,
        macs_costs(found, candidates),
        _params_costs(program, coupling, candidates),
    )


def narrowed(prepared: Prepared, widths: Mapping[str, int]) -> Prepared:
    """With candidates up to these widths only, finer near them, and the full width.

    Costs are then tabulated, and kernels measured, where the network's widths will lie.
    """
    coupling, target = prepared.coupling, prepared.target
    candidates = dict(prepared.candidates)
    for group in coupling.groups:
        width = widths[group.name]
        if 0 < width < group.width:
            near = width_candidates(group, coupling, target, width=width)
            candidates[group.name] = (*near, group.width)
    return replace(
        prepared,
        candidates=candidates,
        macs=macs_costs(prepared.sites, candidates),
        params=_params_costs(prepared.program, coupling, candidates),
    )


def carry_out(
    prepared: Prepared,
    kept: Mapping[str, tuple[int, ...]],
    predicted: Mapping[str, float] | None = None,
) -> tuple[Plan, Program]:
    """The plan that keeps these units, with what it is predicted to take; the smaller program."""
    program, coupling = prepared.program, prepared.coupling
    plan = Plan(fingerprint(program), kept, dict(predicted or {}), coupling.forms)
    return plan, rewrite(program, coupling, plan)


def _params_costs(
    program: Program, coupling: Coupling, candidates: Mapping[str, tuple[int, ...]]
) -> tuple[Cost, ...]:
    shapes = {n: tuple(p.shape) for n, p in program.module.named_parameters()}
    return params_costs(coupling, shapes, candidates)


def measure_kernels(
    prepared: Prepared,
    table: LatencyTable,
    advance: Advance,
    boards: BoardTable | None = None,
) -> Measured:
    """Fill the table with the kernels that pricing this network needs, here or on boards.

    Where latency is a staircase, kernels of a model have a row at every width: they cost nothing.
    """
    sites, candidates, threads = prepared.sites, prepared.candidates, prepared.threads

    def obtained(needed: Iterable[Workload]) -> Measured:
        return obtain(needed, prepared.target, threads, table, progress=advance, boards=boards)

    done = obtained(required(sites, candidates))
    if not prepared.stepped:
        return done
    return done.then(obtained(finer(sites, candidates, table, threads)))
