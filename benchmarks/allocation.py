"""Allocation against baselines: importance kept at the same exactly priced latency.

    python -m benchmarks.allocation [--quick] [--out FILE] [--model NAME] [--budget SHARE]

Every method chooses among the same candidate widths, under the same scores, table and budget. A
latency is the sum of the network's kernels, timed one by one on this machine with one thread; what
the table lacks is measured first. The seconds of a baseline include the search for its settings.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.baselines import METHODS, widest
from hwprune.allocate import allocate
from hwprune.budget import LATENCY
from hwprune.cost import Cost
from hwprune.errors import HwpruneError
from hwprune.problem import Problem

MODELS = ("efficientnet_lite0", "resnet18", "resnet50", "mobilenet_v2")
QUICK_MODELS = ("rnet",)
BUDGETS = (0.5, 0.7)  # of the dense network's latency
OURS = "ours"
TIE = 1e-9  # of the dense importance: two methods that found the same widths
Row = dict[str, Any]


@dataclass(frozen=True)
class Priced:
    """The allocator's inputs for a network, and how many kernels had to be measured for them."""

    scores: Mapping[str, np.ndarray]
    candidates: Mapping[str, Sequence[int]]
    costs: tuple[Cost, ...]
    measured: int

    def problem(self, share: float) -> Problem:
        """Keep the most importance within a share of the dense latency."""
        full = {g: max(options) for g, options in self.candidates.items()}
        dense_us = sum(cost.at(full) for cost in self.costs)
        return Problem(
            self.scores, self.candidates, {LATENCY: self.costs}, {LATENCY: share * dense_us}
        )


def price(model: str, importance: str) -> Priced:
    """Capture, couple and score a network, and price it as the tool does."""
    from examples.models import build, example_input
    from hwprune.capture import capture
    from hwprune.prepare import measure_kernels, open_table, prepare
    from hwprune.price import latency_costs
    from hwprune.score import score
    from hwprune.target import load_target

    program = capture(build(model), (example_input(model),), name=model)
    target = load_target("host")
    prepared = prepare(program, target, threads=1)
    scores = score(program, prepared.coupling, importance)
    with open_table(target) as table:
        with common.console.status(f"{model}: kernels") as status:
            done = measure_kernels(
                prepared, table, lambda n, of: status.update(f"{model}: kernel {n} of {of}")
            )
        costs = latency_costs(prepared.sites, prepared.candidates, table, threads=1)
    return Priced(scores, prepared.candidates, costs, done.measured)


def compare(problem: Problem) -> list[Row]:
    """A row for ours and for every baseline: importance, latency, share of the budget, seconds."""
    ((resource, budget),) = problem.budgets.items()
    full = widest(problem)
    dense = problem.worth(full)

    def row(method: str, widths: Mapping[str, int], seconds: float) -> Row:
        used = problem.price(resource, widths)
        worth = problem.worth(widths)
        return {
            "method": method,
            "importance": worth,
            "importance_share": worth / dense,
            resource: used,
            "budget_used": used / budget,
            "seconds": round(seconds, 4),
        }

    found = allocate(problem.scores, problem.candidates, problem.costs, problem.budgets)
    ours = row(OURS, found.widths(), found.seconds)
    rows = [ours | {"bound": found.bound, "gap": found.gap, "objective": found.objective}]
    for name, method in METHODS.items():
        started = time.perf_counter()
        widths = method(problem)
        rows.append(row(name, widths, time.perf_counter() - started))
    return rows


def margins(rows: Sequence[Row]) -> dict[str, float]:
    """By baseline: how much more ours keeps, as a share of the dense importance.

    A baseline over the budget has failed and counts for nothing.
    """
    ours = next(r for r in rows if r["method"] == OURS)
    return {
        r["method"]: ours["importance_share"]
        - (r["importance_share"] if r["budget_used"] <= 1 + TIE else 0.0)
        for r in rows
        if r["method"] != OURS
    }


def run(model: str, importance: str, budgets: Sequence[float]) -> list[Row]:
    """Rows of one network under every budget, then its verdict; or the reason why there are none.

    The verdict holds where ours keeps at least as much as every baseline under every budget.
    """
    try:
        priced = price(model, importance)
    except HwpruneError as error:
        return [{"model": model, "method": OURS, "reason": str(error)}]
    facts = {"model": model, "groups": len(priced.candidates), "kernels_measured": priced.measured}
    rows: list[Row] = []
    least: dict[str, float] = {}
    for share in budgets:
        head = facts | {"budget": share}
        with common.console.status(f"{model}: {share:.0%} of the latency"):
            try:
                found = compare(priced.problem(share))
            except HwpruneError as error:
                rows.append(head | {"method": OURS, "reason": str(error)})
                continue
        rows += [head | row for row in found]
        for name, margin in margins(found).items():
            least[name] = min(margin, least.get(name, margin))
    holds = all(margin >= -TIE for margin in least.values()) if least else None
    return [*rows, {"model": model, "method": "verdict", "least_margin": least, "holds": holds}]


def show(rows: Sequence[Row]) -> None:
    """Print every method's row, then the verdict by network, then what failed and why."""
    common.table(
        "Importance kept under a latency budget, one thread",
        ("model", "budget", "method", "importance", "of dense", "ms", "used", "seconds", "gap"),
        [_cells(row) for row in rows if "importance" in row],
        text=3,
    )
    common.table(
        "Ours minus baseline, least over the budgets, as a share of the dense importance",
        ("model", *METHODS, "ours at least as much"),
        [
            [
                row["model"],
                *(_percent(row["least_margin"].get(name), 3) for name in METHODS),
                {True: "yes", False: "NO", None: "-"}[row["holds"]],
            ]
            for row in rows
            if row["method"] == "verdict"
        ],
    )
    for row in rows:
        if row.get("reason"):
            where = f"{row['model']}: {row['reason']}"
            common.console.print(where, style="yellow", markup=False)


def _cells(row: Row) -> list[str]:
    return [
        row["model"],
        f"{row['budget']:.0%}",
        row["method"],
        f"{row['importance']:.4f}",
        _percent(row["importance_share"], 3),
        f"{row[LATENCY] / 1000:.3f}",
        _percent(row["budget_used"], 2),
        f"{row['seconds']:.2f}",
        _percent(row.get("gap"), 3),
    ]


def _percent(share: float | None, digits: int) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def main() -> None:
    parser = common.parser(__doc__, f"{', '.join(QUICK_MODELS)} only")
    parser.add_argument("--model", action="append", help="only this network (repeatable)")
    parser.add_argument("--budget", action="append", type=float, help="0.5 and 0.7 if not given")
    parser.add_argument("--importance", default="l2", help="a criterion that needs no data; l2")
    options = parser.parse_args()
    rows: list[Row] = []
    for model in options.model or (QUICK_MODELS if options.quick else MODELS):
        rows += run(model, options.importance, options.budget or BUDGETS)
    show(rows)
    common.finish(options.out, rows, ("scipy", "torchvision"))


if __name__ == "__main__":
    main()
