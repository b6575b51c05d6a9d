"""Allocation: choose every group's width to keep the most importance under all budgets.

In: `Scores`, candidate widths, `Cost`s and budgets. Out: an `Allocation` with its optimality bound.
The linear relaxation bounds it and says which candidates matter; the integer program over those is
small, and the whole one is solved only where that leaves a gap. Both relax what sums several
groups, so an answer is priced exactly; where it exceeds a budget, that budget is tightened.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from hwprune.budget import LATENCY
from hwprune.errors import BudgetError
from hwprune.milp import Model
from hwprune.problem import Allocation, Costs, Problem

ATTEMPTS = 6


def allocate(
    scores: Mapping[str, np.ndarray],
    candidates: Mapping[str, Sequence[int]],
    costs: Costs,
    budgets: Mapping[str, float],
    *,
    gates: Mapping[str, str] | None = None,
    time_limit_s: float = 10.0,
    gap: float = 0.002,
) -> Allocation:
    """The widths that keep the most importance under every budget at once.

    `budgets` are absolute, by resource (a key of `costs`); `gates` name the branch that a group
    lies in (`Problem`). Raises BudgetError with the smallest reachable value if one cannot be met.
    """
    started = time.perf_counter()
    problem = Problem(scores, candidates, costs, budgets, gates or {})
    full = problem.full
    if problem.fits(full):
        return problem.allocation(full, problem.worth(full), started)
    check_reachable(problem)
    model = Model(problem)
    relaxed = model.relax(budgets)
    bound = problem.worth(full) if relaxed is None else relaxed.bound
    found: list[dict[str, int]] = []
    if relaxed is not None:
        widths, _ = _exact(problem, model, relaxed.near, started + time_limit_s, gap / 4)
        found += [widths] if widths is not None else []
    early = time.perf_counter() < started + time_limit_s / 2
    if not found or (early and bound - problem.worth(found[0]) > gap * bound):
        widths, dual = _exact(problem, model, None, started + time_limit_s, gap)
        bound = min(bound, dual)
        found += [widths] if widths is not None else []
    if not found:
        found.append(_fill(problem, _descend(problem, full)))
    return problem.allocation(max(found, key=problem.worth), bound, started)


def _exact(
    problem: Problem,
    model: Model,
    near: Mapping[str, range] | None,
    deadline: float,
    gap: float,
) -> tuple[dict[str, int] | None, float]:
    """(widths, bound): solved, priced exactly, and solved under tighter budgets while too dear.

    The bound is that of the budgets as they are; infinite where it is not known.
    """
    bound = np.inf
    tightened = dict(problem.budgets)
    for attempt in range(ATTEMPTS):
        left = deadline - time.perf_counter()
        if attempt and left <= 0:
            break
        solution = model.solve(tightened, max(left, 1.0), gap, near)
        if solution is None:
            break
        widths, dual = solution
        bound = dual if attempt == 0 else bound
        if problem.fits(widths):
            return _fill(problem, widths), bound
        for resource, budget in problem.budgets.items():
            excess = problem.price(resource, widths) / budget
            if excess > 1:
                tightened[resource] /= excess * 1.0005
    return None, bound


def check_reachable(problem: Problem) -> None:
    """Raise BudgetError if even the smallest widths exceed a budget; states what they reach."""
    smallest, full = problem.smallest, problem.full
    for resource, budget in problem.budgets.items():
        least, dense = (problem.price(resource, w) for w in (smallest, full))
        if least > budget:
            unit, scale = ("ms", 1e-3) if resource == LATENCY else ("", 1.0)
            raise BudgetError(
                f"cannot be met: {budget * scale:.6g} {unit}".rstrip()
                + f" asked, {least * scale:.6g} {unit}".rstrip()
                + f" is the smallest reachable ({100 * least / dense:.1f}% of the dense network)",
                where=resource.removesuffix("_us"),
                hint="raise the budget",
            )


def _fill(problem: Problem, widths: Mapping[str, int]) -> dict[str, int]:
    """Widen groups one candidate at a time, best importance first, while everything fits."""
    current = dict(widths)
    improved = True
    while improved:
        improved = False
        steps = [(problem.loss(current, step), step) for step in problem.wider(current)]
        for _, step in sorted(steps, key=lambda s: (s[0], min(s[1].items()))):
            trial = {**current, **step}
            if problem.fits(trial):
                current, improved = trial, True
                break
    return current


def _descend(problem: Problem, widths: Mapping[str, int]) -> dict[str, int]:
    """Narrow groups greedily (least importance lost per cost saved) until everything fits."""
    current = dict(widths)
    while not problem.fits(current):
        over = {r: problem.price(r, current) / b for r, b in problem.budgets.items()}
        resource = max(over, key=lambda r: over[r])
        before = problem.price(resource, current)
        best: tuple[float, dict[str, int]] | None = None
        for step in problem.narrower(current):
            saved = before - problem.price(resource, {**current, **step})
            rate = problem.loss(current, step) / saved if saved > 0 else np.inf
            if best is None or rate < best[0]:
                best = (rate, step)
        if best is None:
            check_reachable(problem)
            raise BudgetError("cannot be met together", hint="raise one of the budgets")
        current |= best[1]
    return current
