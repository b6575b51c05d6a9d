"""Scores asked again while a network gets narrower on the way to its budgets.

In: a `Solver` for the dense network, how units are scored, how much is to be left. Out: a `Solver`
whose scores are of a network nearly as narrow as the one that is sought, with candidate widths and
prices near it. What a group is worth depends on how much of the others is left: errors of groups
that are narrowed one at a time say little of a network at a quarter of its latency. At every step
there are several opinions of it, and the plan of each is tried out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hwprune.calibrate import Calibration
from hwprune.cost import Cost
from hwprune.couple import couple
from hwprune.errors import HwpruneError
from hwprune.importance import Scorer
from hwprune.prepare import Prepared, narrowed
from hwprune.problem import Allocation
from hwprune.program import Program
from hwprune.progress import Advance, Progress
from hwprune.score import Scores
from hwprune.solver import Solver
from hwprune.threshold import discount
from hwprune.trial import Kept, Trials

STEP = 0.71  # of the network's cost that a step leaves: two steps to a half, four to a quarter
MOST = 6
ENOUGH = 48  # images to reconstruct from: too few say what they saw, not what is right
Costs = tuple[Cost, ...]


@dataclass(frozen=True)
class Gradual:
    """How units are scored anew: the smaller network is reconstructed from the images first.

    `steps` on the way to the budgets, the last one included; None chooses by how much goes.
    """

    scorer: Scorer
    steps: int | None = None
    seed: int = 0

    def count(self, share: float) -> int:
        """Steps to this share of the dense network; one where there are no, or few, images."""
        if self.scorer.images is None:
            return 1
        if self.steps is not None:
            return self.steps
        if len(self.scorer.images) < ENOUGH:
            return 1
        return min(max(round(math.log(share) / math.log(STEP)), 1), MOST) if share < 1 else 1

    def trials(self, prepared: Prepared) -> Trials | None:
        """What tries plans out; None without images."""
        if self.scorer.images is None:
            return None
        return Trials(prepared, self.scorer.images, self.seed)

    def rescore(
        self, smaller: Program, prepared: Prepared, scores: Scores, kept: Kept, advance: Advance
    ) -> list[Scores]:
        """Scores of the dense network's units by this reconstructed network, where these are
        `kept`: zero for the others. The last are those that there were.
        """
        again = couple(smaller, **asdict(prepared.coupling.forms))
        found = self.scorer(smaller, again, advance)
        opinions = [found, *self.scorer.others(smaller, again, found, advance), {}]
        return [carry_over(new, scores, kept) for new in opinions]


def carry_over(new: Scores, old: Scores, kept: Kept) -> dict[str, np.ndarray]:
    """The new scores of the units that are kept, in the places that they had.

    Where the smaller network has no such group (nothing of it can go), the old scores stay.
    """
    found: dict[str, np.ndarray] = {}
    for name, before in old.items():
        units = list(kept[name])
        scores = np.asarray(new[name]) if name in new else None
        if scores is None or len(scores) != len(units):
            scores = np.asarray(before)[units]
        found[name] = np.zeros(len(before))
        found[name][units] = scores
    return found


def walk(
    gradual: Gradual | None,
    prepared: Prepared,
    scores: Scores,
    share: float,
    solve: Callable[[Prepared, Scores, float], Kept],
    progress: Progress,
) -> tuple[Prepared, Scores, int]:
    """What to solve for the last step with: candidates near it, scores, and the number of steps.

    `share` of the dense network is left by the tightest budget; `solve(near, scores, part)`
    allocates for a part of the way. Without `gradual` or images, and where one step is asked for,
    it is all as it was.
    """
    trials = None if gradual is None or gradual.steps == 1 else gradual.trials(prepared)
    if gradual is None or trials is None:
        return prepared, scores, 1
    steps, near = gradual.count(share), prepared
    opinions: list[Scores] = [scores]
    if trials.judge and share < 1:
        with progress.stage("other opinions") as advance:
            opinions += gradual.scorer.others(prepared.program, prepared.coupling, scores, advance)
    for step in range(1, steps + 1):
        if step == steps and len(opinions) == 1:
            return near, opinions[0], steps
        plans = [solve(near, some, step / steps) for some in opinions]
        kept, smaller = plans[0], None
        if any(plan != kept for plan in plans):
            with progress.stage(f"try plans, {step} of {steps}") as advance:
                kept, smaller = trials.best(plans, advance)
        scores = opinions[plans.index(kept)]
        if step == steps:
            break
        with progress.stage(f"score again, {step} of {steps - 1}") as advance:
            smaller = smaller or trials.reconstructed(kept)
            new = gradual.rescore(smaller, prepared, scores, kept, advance)
        opinions = new if trials.judge else new[:1]
        near = narrowed(prepared, {name: len(units) for name, units in kept.items()})
    return near, scores, steps


def approach(
    gradual: Gradual | None,
    solver: Solver,
    share: float,
    solve: Callable[[Solver, float], Allocation],
    progress: Progress,
) -> tuple[Solver, int]:
    """The solver for the last step, and how many steps there are; itself and 1 without `gradual`.

    `share` of the dense network is left by the tightest budget; `solve(solver, part)` allocates for
    a part of the way: under a latency of which that power of its share is left.
    """

    def using(near: Prepared, scores: Scores) -> Solver:
        return replace(solver, prepared=near, scores=discount(scores, solver.weak))

    def kept(near: Prepared, scores: Scores, part: float) -> Kept:
        return solve(_eased(using(near, scores), part), part).kept

    near, scores, steps = walk(gradual, solver.prepared, solver.scores, share, kept, progress)
    return using(near, scores), steps


def approach_latency(
    gradual: Gradual | None,
    solver: Solver,
    priced: Callable[[Prepared], Costs],
    calibration: Calibration,
    goal_us: float,
    dense_us: float,
    progress: Progress,
) -> tuple[Solver, Costs, int]:
    """The solver for the last step to a latency, the kernels' prices there, and the steps.

    `priced` gives the prices over the candidate widths of a network on the way.
    """
    share = min(goal_us / dense_us, 1.0)
    known: list[tuple[Prepared, Costs]] = []

    def costs(near: Prepared) -> Costs:
        if not known or known[-1][0] is not near:
            known.append((near, priced(near)))
        return known[-1][1]

    def solve(eased: Solver, part: float) -> Allocation:
        return eased.aim(costs(eased.prepared), calibration, share**part * dense_us)[0]

    found, steps = approach(gradual, solver, least_share(solver, share), solve, progress)
    return found, costs(found.prepared), steps


def least_share(solver: Solver, latency_share: float = 1.0) -> float:
    """The smallest share of the dense network that a budget leaves."""
    shares = [amount / solver.prepared.dense(r) for r, amount in solver.fixed.items()]
    return min([latency_share, *shares])


def _eased(solver: Solver, part: float) -> Solver:
    """With budgets of MACs and parameters of this part of the way."""
    dense = {r: solver.prepared.dense(r) for r in solver.fixed}
    return replace(solver, fixed=ease(solver.fixed, dense, part))


def ease(amounts: Mapping[str, float], dense: Mapping[str, float], part: float) -> dict[str, float]:
    """Budgets by resource at this part of the way from what the dense network takes."""
    return {r: dense[r] * min(amount / dense[r], 1.0) ** part for r, amount in amounts.items()}


def check_steps(steps: Any, images: bool) -> int | None:
    """The number of steps, None where it is left open. HwpruneError for an impossible one."""
    if steps is None:
        return None
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= 100:
        raise HwpruneError(
            f"{steps!r} is impossible", where="steps", hint="a whole number from 1 to 100"
        )
    if steps > 1 and not images:
        raise HwpruneError(
            "scoring again needs unlabelled inputs", where="steps", hint="pass calibrate"
        )
    return steps
