"""The systems that the accuracy benchmark compares, each a function to a network of one latency.

In: a `Subject` and a share of its dense latency. Out: a `Timed` candidate. HALP-like and
NetAdapt-like rows differ from hwprune's in allocation alone: the importance and the kernels'
latencies are the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import hwprune
from benchmarks.accuracy_fit import Candidate, Timed, fit
from benchmarks.accuracy_peers import PEERS, torch_pruning
from benchmarks.accuracy_subject import Subject
from benchmarks.baselines import METHODS, widest
from hwprune.budget import LATENCY
from hwprune.capture import capture, fingerprint
from hwprune.errors import BudgetError
from hwprune.given import RECOVERED_AT_ONCE, recover_part
from hwprune.plan import Plan
from hwprune.problem import Problem
from hwprune.program import Program
from hwprune.recover import reconstruct
from hwprune.rewrite import kept_indices, rewrite

OURS, WIDTHS, RANDOM, HALP, NETADAPT, WIDTH = (
    "hwprune", "hwprune-widths", "hwprune-random", "halp", "netadapt", "width",
)  # fmt: skip
System = Callable[[Subject, float], Timed]


def ours(
    subject: Subject, share: float, importance: str = "auto", branches: bool | None = None
) -> Timed:
    """hwprune with calibration images, within a share of the dense latency."""
    result = hwprune.prune(
        subject.program,
        latency=share,
        importance=importance,
        branches=branches,
        calibrate=subject.data.images,
        recover="none",
        seed=subject.seed,
        target=subject.place.target,
        dtype=subject.place.dtype,
    )
    pair = subject.time(result.program)
    return Timed(Candidate(result.program, result.kept), pair)


def allocated(subject: Subject, share: float, method: str) -> Timed:
    """hwprune with another allocation, of `benchmarks.baselines`; its budget is what is fitted."""
    return fit(partial(_allocate, subject, method), subject.time, share)


def _allocate(subject: Subject, method: str, amount: float) -> Candidate:
    prepared, scores, costs = subject.prepared, subject.scores, {LATENCY: subject.costs}
    dense = Problem(scores, prepared.candidates, costs, {})
    budget = {LATENCY: amount * dense.price(LATENCY, widest(dense))}
    problem = Problem(scores, prepared.candidates, costs, budget)
    widths = METHODS[method](problem)
    found = problem.allocation(widths, problem.worth(widths), time.perf_counter())
    plan = Plan(fingerprint(subject.program), dict(found.kept))
    program = rewrite(subject.program, prepared.coupling, plan)
    return Candidate(program, kept_indices(prepared.coupling, plan, subject.program), amount)


def narrow(subject: Subject, share: float) -> Timed:
    """The network with one factor on all widths, untrained."""

    def make(amount: float) -> Candidate:
        module = subject.network.build(subject.seed, amount)
        program = capture(module, subject.example, name=subject.network.name)
        return Candidate(program, None, amount)

    return fit(make, subject.time, share)


SYSTEMS: Mapping[str, System] = {
    OURS: ours,
    WIDTHS: partial(ours, branches=False),
    RANDOM: partial(ours, importance="random"),
    HALP: partial(allocated, method="knapsack"),
    NETADAPT: partial(allocated, method="greedy"),
    **{name: lambda s, share, name=name: torch_pruning(s, name, share) for name in PEERS},
    WIDTH: narrow,
}


def recovered(subject: Subject, candidate: Candidate) -> Program | None:
    """The candidate after reconstruction without labels; None where there is nothing to recover."""
    if candidate.kept is None:
        return None
    images = recover_part(subject.data.images).split(RECOVERED_AT_ONCE)
    return reconstruct(
        subject.program, candidate.program, candidate.kept, images, seed=subject.seed
    ).program


def share_of(speedup: float) -> float:
    """Of the dense latency, for a speed-up. Raises BudgetError for one that is none."""
    if not speedup > 1:
        raise BudgetError(f"a speed-up of {speedup:g} is none", where="speedup", hint="above 1")
    return 1.0 / speedup
