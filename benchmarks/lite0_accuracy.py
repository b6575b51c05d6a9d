"""How alike a pruned EfficientNet-Lite0 stays without labels, by criterion, under a MACs budget.

    python -m benchmarks.lite0_accuracy [--quick] [--out FILE] [--method NAME] [--budget SHARE]

The pretrained network is pruned to a share of its multiply-accumulates and recovered by the label-
free reconstruction. Rows say how often its top-1 class is the dense network's on photos that
nothing has seen, and how many of the labelled ones among them are right. Torch-Pruning's rows get
the same recovery. Nothing is timed, so the rows do not depend on the machine. Rows that FILE has
already are not measured again.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.accuracy_fit import Candidate
from benchmarks.accuracy_peers import LABEL_FREE
from benchmarks.baselines import uniform
from benchmarks.lite0_peers import within_macs
from examples import models, photos
from hwprune.allocate import allocate
from hwprune.budget import MACS
from hwprune.capture import capture, fingerprint
from hwprune.curves import Sensitivity, weigh
from hwprune.gradual import Gradual, approach
from hwprune.importance import Importance, Scorer
from hwprune.plan import Plan
from hwprune.prepare import Prepared, prepare
from hwprune.problem import Allocation, Problem
from hwprune.program import Program
from hwprune.progress import Silent
from hwprune.recover import fidelity, reconstruct
from hwprune.rewrite import kept_indices, rewrite
from hwprune.score import CRITERIA, Scores, score
from hwprune.sensitivity import measure_sensitivity
from hwprune.solver import Solver
from hwprune.target import load_target

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "lite0_accuracy"
UNIFORM, SENSITIVITY = "uniform", "sensitivity:"
OURS = "hwprune"  # what it does by default with images
METHODS = ("l2", UNIFORM, f"{SENSITIVITY}l2", f"{SENSITIVITY}reconstruction", OURS, *LABEL_FREE)
BUDGETS = (0.6, 0.5, 0.7, 0.8, 0.9)
ONE_BUDGET = 0.6
Row = dict[str, Any]


@dataclass(frozen=True)
class Amount:
    """How many photos there are for each purpose."""

    calibrate: int = 48
    sensitivity: int = 16
    judge: int = 96


class Bench:
    """The dense network, the photos, and what is shared by all rows."""

    def __init__(self, amount: Amount) -> None:
        self.amount = amount
        self.module = models.efficientnet_lite0()
        self.example = models.example_input("efficientnet_lite0")
        self.program: Program = capture(self.module, (self.example,))
        self.prepared: Prepared = prepare(self.program, load_target("host"), threads=1)
        self.images = photos.calibration(amount.calibrate)
        self.judged, self.labels = photos.held_out(amount.judge)
        self.dense = self.outputs(self.program)

    def outputs(self, program: Program) -> Tensor:
        """Logits of the photos to judge by."""
        with torch.no_grad():
            return torch.cat([program.module(x) for x in self.judged.split(16)])

    @cached_property
    def curves(self) -> Sensitivity:
        """Measured with units ranked by L2; kept on disk."""
        CACHE.mkdir(parents=True, exist_ok=True)
        batches = [((x,), None) for x in self.images[: self.amount.sensitivity].split(16)]
        return measure_sensitivity(
            self.program, self.prepared.coupling, self.scores("l2"), batches, importance="l2",
            file=CACHE / f"sensitivity-{self.amount.sensitivity}.json",
        )  # fmt: skip

    def scores(self, method: str) -> Scores:
        """Of every unit, by a criterion; weighed by the measured curves where it says so."""
        name = method.removeprefix(SENSITIVITY)
        found = score(self.program, self.prepared.coupling, name, images=self.images)
        return weigh(found, self.curves) if method.startswith(SENSITIVITY) else found

    def kept(self, method: str, share: float) -> tuple[dict[str, tuple[int, ...]], float]:
        """Units by group, and the multiply-accumulates that they take."""
        prepared = self.prepared
        if method == OURS:
            found = self.ours(share)
            return dict(found.kept), found.predicted[MACS]
        scores = self.scores("l2" if method == UNIFORM else method)
        budget = {MACS: share * prepared.dense(MACS)}
        problem = Problem(scores, prepared.candidates, {MACS: prepared.macs}, budget)
        if method == UNIFORM:
            widths = uniform(problem)
            found = problem.allocation(widths, problem.worth(widths), time.perf_counter())
        else:
            found = allocate(scores, prepared.candidates, {MACS: prepared.macs}, budget)
        return dict(found.kept), found.predicted[MACS]

    def ours(self, share: float) -> Allocation:
        """What `hwprune.prune` chooses; all photos are its own, others judge here."""
        prepared, scorer = self.prepared, Scorer(Importance(), self.images)
        scores = scorer(self.program, prepared.coupling, lambda done, total: None)
        solver = Solver(prepared, scores, {MACS: share * prepared.dense(MACS)}, {})
        gradual = Gradual(scorer)
        near, _ = approach(gradual, solver, share, lambda eased, part: eased.count(), Silent())
        return near.count()

    def pruned(self, method: str, share: float) -> tuple[Candidate, float]:
        """A smaller network, and the multiply-accumulates that it takes."""
        if method in LABEL_FREE:
            module, peer = within_macs(self.module, "_fc", self.example, method, share)
            program = capture(module, (self.example,))
            macs = prepare(program, self.prepared.target, threads=1).dense(MACS)
            return Candidate(program, peer), macs
        kept, macs = self.kept(method, share)
        plan = Plan(fingerprint(self.program), kept)
        program = rewrite(self.program, self.prepared.coupling, plan)
        indices = kept_indices(self.prepared.coupling, plan, self.program)
        return Candidate(program, indices), macs

    def row(self, method: str, share: float) -> Row:
        """Prune, recover and judge once."""
        candidate, macs = self.pruned(method, share)
        assert candidate.kept is not None
        batches = self.images.split(16)
        recovered = reconstruct(self.program, candidate.program, candidate.kept, batches).program
        return {
            "model": "efficientnet_lite0",
            "method": method,
            "budget": share,
            "macs": macs,
            "macs_share": round(macs / self.prepared.dense(MACS), 5),
            "params": sum(p.numel() for p in recovered.module.parameters()),
            **self.judge(recovered),
            **self.counts(),
        }

    def judge(self, program: Program) -> Row:
        """How alike a network's outputs are to the dense network's, and how many are right."""
        outputs = self.outputs(program)
        alike = fidelity(lambda i: self.dense[i], lambda i: outputs[i], torch.arange(len(outputs)))
        return {
            **{key: round(value, 5) for key, value in alike.items()},
            "top1_labelled": self.right(outputs),
            "top1_labelled_dense": self.right(self.dense),
        }

    def right(self, outputs: Tensor) -> int:
        """How many of the labelled photos are classified right."""
        classes = outputs.argmax(1).tolist()
        return sum(a == b for a, b in zip(classes, self.labels, strict=True) if b is not None)

    def counts(self) -> dict[str, int]:
        """How many photos a row is of."""
        labelled = sum(label is not None for label in self.labels)
        calibrate, judged = len(self.images), len(self.judged)
        return {"calibrated_on": calibrate, "judged_on": judged, "labelled": labelled}


def plan_rows(methods: Sequence[str] | None, budgets: Sequence[float] | None) -> list[Any]:
    """(method, budget) pairs, the most telling first: all criteria under one budget only."""
    everywhere = [(m, b) for b in BUDGETS for m in METHODS]
    once = [(m, ONE_BUDGET) for m in sorted(CRITERIA) if m not in METHODS]
    wanted = [*everywhere[: len(METHODS)], *once, *everywhere[len(METHODS) :]]
    if methods:
        wanted = [(m, b) for m in methods for b in budgets or [ONE_BUDGET]]
    return [(m, b) for m, b in wanted if budgets is None or b in budgets]


def show(rows: Sequence[Row]) -> None:
    """Print the rows by budget, the most alike first."""
    common.table(
        "EfficientNet-Lite0, label-free: agreement with the dense network on held-out photos",
        ("method", "MACs", "top-1 agreement", "cosine", "labelled right"),
        [
            [
                row["method"],
                f"{100 * row['macs_share']:.1f} %",
                f"{100 * row['top1_agreement']:.1f} %",
                f"{row['cosine']:.3f}",
                f"{row['top1_labelled']} / {row['labelled']}",
            ]
            for row in sorted(rows, key=lambda r: (-r["budget"], -r["top1_agreement"]))
        ],
    )


def main() -> None:
    parser = common.parser(__doc__, "a few photos, two methods, one budget: checks that it runs")
    parser.add_argument("--method", action="append", help="a criterion, uniform, sensitivity:NAME")
    parser.add_argument("--budget", action="append", type=float, help="share of the dense MACs")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # torch's own
    amount = Amount(16, 8, 16) if options.quick else Amount()
    wanted = plan_rows(options.method, options.budget)
    wanted = [(UNIFORM, 0.6), ("l2", 0.6)] if options.quick else wanted
    rows = common.rows_of(options.out)
    known = {(row["method"], row["budget"]) for row in rows}
    bench = Bench(amount)
    for method, share in wanted:
        if (method, share) in known:
            continue
        with common.console.status(f"{method} at {share:.0%}"):
            row = bench.row(method, share)
        common.console.print(
            f"{method} at {share:.0%}: {row['top1_agreement']:.1%}, cosine {row['cosine']:.3f}"
        )
        rows.append(row)
        common.finish(options.out, rows)
    show(rows)


if __name__ == "__main__":
    main()
