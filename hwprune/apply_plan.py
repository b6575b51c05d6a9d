"""A saved plan carried out again."""

from __future__ import annotations

from hwprune.budget import MACS, PARAMS
from hwprune.capture import fingerprint
from hwprune.latency import Outcome
from hwprune.macs import macs
from hwprune.plan import Plan
from hwprune.prepare import Prepared
from hwprune.problem import Allocation
from hwprune.rewrite import rewrite


def apply_plan(plan: Plan, source: str, prepared: Prepared) -> Outcome:
    """The program that a given plan makes. Raises PlanError if it was made for another model."""
    plan.check(prepared.coupling, fingerprint(prepared.program), source)
    program = rewrite(prepared.program, prepared.coupling, plan)
    widths = plan.widths()
    predicted = {
        MACS: float(sum(macs(s.workload(widths)) for s in prepared.sites if s.runs(widths))),
        PARAMS: float(sum(p.numel() for p in program.module.parameters())),
    }
    return Outcome(Allocation(plan.kept, 0.0, 0.0, 0.0, 0.0, predicted), plan, program, None)
