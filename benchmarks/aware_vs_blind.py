"""What awareness buys: importance kept at equal latency by plans that know, count, or know another.

    python -m benchmarks.aware_vs_blind [--quick] [--measure] [--out FILE] [--model NAME]

For every device and network, plans keep what they can within the same latency on that device: one
that knows the device's latencies, one made under a budget of multiply-accumulates, and ones made
under the latencies of other devices. The budget of a blind plan is the largest whose plan still
meets the latency, found by bisection. All choose among the same widths under the same scores.
Latencies of the host are those of its table (with --measure, what it lacks is measured first: the
machine must be quiet); those of Arm cores are predicted. Sums of kernels, one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks import common
from hwprune.allocate import allocate
from hwprune.budget import LATENCY, MACS
from hwprune.capture import Program, capture
from hwprune.cost import Cost
from hwprune.errors import BudgetError, HwpruneError, TableError
from hwprune.obtain import is_predicted, open_table
from hwprune.prepare import Prepared, measure_kernels, prepare
from hwprune.price import latency_costs, required
from hwprune.problem import Problem
from hwprune.score import score
from hwprune.target import load_target

MODELS = ("mobilenet_v2", "resnet18", "efficientnet_lite0")
QUICK_MODELS = ("rnet",)
DEVICES = ("host", "cortex-a53", "cortex-a72")
SHARE = 0.5  # of the dense network's latency
BISECTIONS = 9
GAP = 0.002
AWARE, COUNTED = "latency of the device", "multiply-accumulates"
Row = dict[str, Any]
Widths = Mapping[str, int]


@dataclass(frozen=True)
class Subject:
    """A network with the scores and the candidate widths that all plans share."""

    name: str
    prepared: Prepared
    scores: Mapping[str, np.ndarray]

    def plan(self, resource: str, costs: Sequence[Cost], share: float) -> Widths:
        """The widths that keep the most within a share of the dense cost."""
        budget = {resource: share * price(costs, self.prepared.full)}
        found = allocate(
            self.scores, self.prepared.candidates, {resource: costs}, budget,
            gates=self.prepared.gates, gap=GAP,
        )  # fmt: skip
        return found.widths()

    def kept(self, widths: Widths) -> float:
        """The share of the dense importance that these widths keep."""
        problem = Problem(self.scores, self.prepared.candidates, {}, {}, self.prepared.gates)
        return problem.worth(widths) / problem.worth(self.prepared.full)


def price(costs: Sequence[Cost], widths: Widths) -> float:
    """The sum of costs at these widths."""
    return sum(cost.at(widths) for cost in costs)


def blind(
    subject: Subject, resource: str, costs: Sequence[Cost], device: Sequence[Cost], goal_us: float
) -> Widths:
    """The plan under the largest budget of another resource that meets the device's latency."""
    low, high, best = 0.0, 1.0, None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        try:
            widths = subject.plan(resource, costs, middle)
        except BudgetError:
            low = middle
            continue
        if price(device, widths) <= goal_us:
            low, best = middle, widths
        else:
            high = middle
    if best is None:
        raise BudgetError("no plan of it meets the latency", where=resource)
    return best


def device_costs(subject: Subject, name: str, *, measure: bool) -> tuple[tuple[Cost, ...], str]:
    """The latencies of a device at the shared widths, and where they come from.

    Raises TableError where the host's table lacks a row and is not to be measured.
    """
    target = load_target(name)
    prepared = replace(subject.prepared, target=target)
    with open_table(target) as table:
        if is_predicted(target) or measure:
            measure_kernels(prepared, table, lambda done, total: None)
        needed = required(prepared.sites, prepared.candidates)
        missing = table.missing(needed, prepared.threads)
        if missing:
            raise TableError(
                f"lacks {len(missing)} of {len(needed)} kernels of {subject.name}",
                where=f"table of {name}",
                hint="pass --measure on a quiet machine",
            )
        costs = latency_costs(prepared.sites, prepared.candidates, table, prepared.threads)
    return costs, "model" if is_predicted(target) else "device"


def load(name: str) -> Subject:
    """A network, coupled and scored, with the widths of the coarsest alignment of all devices."""
    from examples.models import build, example_input

    program: Program = capture(build(name), (example_input(name),), name=name)
    coarsest = max((load_target(d) for d in DEVICES), key=lambda t: t.channel_alignment)
    prepared = prepare(program, coarsest, threads=1)
    return Subject(name, prepared, score(program, prepared.coupling, "l2"))


def compare(subject: Subject, *, measure: bool) -> list[Row]:
    """Rows of one network: every plan on every device; or why a device has none."""
    rows: list[Row] = []
    known: dict[str, tuple[tuple[Cost, ...], str]] = {}
    for name in DEVICES:
        try:
            known[name] = device_costs(subject, name, measure=measure)
        except HwpruneError as error:
            rows.append({"model": subject.name, "device": name, "reason": str(error)})
    for name, (costs, source) in known.items():
        goal_us = SHARE * price(costs, subject.prepared.full)
        others = {other: found[0] for other, found in known.items() if other != name}
        head = {"model": subject.name, "device": name, "source": source, "budget_us": goal_us}
        plans = {AWARE: subject.plan(LATENCY, costs, SHARE)}
        plans[COUNTED] = blind(subject, MACS, subject.prepared.macs, costs, goal_us)
        for other, found in others.items():
            plans[f"latency of {other}"] = blind(subject, LATENCY, found, costs, goal_us)
        for plan, widths in plans.items():
            kept = {
                "importance_kept": round(subject.kept(widths), 5),
                "latency_share": round(
                    price(costs, widths) / price(costs, subject.prepared.full), 4
                ),
                "macs_share": round(
                    price(subject.prepared.macs, widths) / subject.prepared.dense(MACS), 4
                ),
            }
            rows.append(head | {"plan": plan} | kept)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__, "a small network only")
    parser.add_argument("--model", action="append", help="these networks only")
    parser.add_argument("--measure", action="store_true", help="measure what the host lacks")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    for name in options.model or (QUICK_MODELS if options.quick else MODELS):
        with common.console.status(name):
            rows += compare(load(name), measure=options.measure)
    common.table(
        f"Importance kept at {SHARE:.0%} of the latency",
        ("network", "device", "source", "plan made for", "importance %", "latency %", "MACs %"),
        [
            (r["model"], r["device"], r["source"], r["plan"], f"{100 * r['importance_kept']:.2f}",
             f"{100 * r['latency_share']:.1f}", f"{100 * r['macs_share']:.1f}")
            for r in rows if "plan" in r
        ],
        text=4,
    )  # fmt: skip
    for row in rows:
        if "reason" in row:
            common.console.print(f"{row['model']} on {row['device']}: {row['reason']}")
    common.finish(options.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
