import itertools

import numpy as np
import pytest

from hwprune.allocate import Problem, allocate
from hwprune.cost import Cost
from hwprune.coupling import Extent
from hwprune.errors import BudgetError


def chain(groups: int, widths: tuple[int, ...], seed: int = 0):
    """A chain of layers: staircase costs joint over input and output width."""
    rng = np.random.default_rng(seed)
    names = [f"g{i}" for i in range(groups)]
    scores = {n: rng.uniform(0, 1, max(widths)) for n in names}
    candidates = dict.fromkeys(names, widths)
    grid = np.array(widths)
    stair = np.ceil(grid / 8)
    table = np.outer(grid, stair) + rng.uniform(0, 5, (len(grid), len(grid)))
    costs = [
        Cost(f"{a}-{b}", (Extent(0, ((a, 1),)), Extent(0, ((b, 1),))), (grid, grid), table)
        for a, b in itertools.pairwise(names)
    ]
    costs.append(Cost("first", (Extent(0, ((names[0], 1),)),), (grid,), 3.0 * stair, count=2))
    costs.append(Cost("fixed", (), (), np.array(7.0)))
    return scores, candidates, {"latency_us": costs}


def best_by_enumeration(problem: Problem) -> float:
    names = list(problem.candidates)
    choices = itertools.product(*(problem.candidates[n] for n in names))
    widths = (dict(zip(names, c, strict=True)) for c in choices)
    return max(problem.worth(w) for w in widths if problem.fits(w))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_finds_the_optimum(share) -> None:
    scores, candidates, costs = chain(4, (4, 8, 12, 16))
    full = dict.fromkeys(candidates, 16)
    budget = share * sum(c.at(full) for c in costs["latency_us"])
    found = allocate(scores, candidates, costs, {"latency_us": budget}, gap=0.0)
    best = best_by_enumeration(Problem(scores, candidates, costs, {"latency_us": budget}))
    assert found.objective == pytest.approx(best)
    assert found.predicted["latency_us"] <= budget
    assert found.bound >= found.objective - 1e-9
    assert found.gap < 1e-6


def test_keeps_the_strongest_units() -> None:
    scores, candidates, costs = chain(3, (4, 8, 16))
    full = dict.fromkeys(candidates, 16)
    budget = 0.4 * sum(c.at(full) for c in costs["latency_us"])
    found = allocate(scores, candidates, costs, {"latency_us": budget})
    for name, units in found.kept.items():
        dropped = set(range(16)) - set(units)
        assert not dropped or min(scores[name][list(units)]) >= max(scores[name][list(dropped)])


def test_several_budgets_hold_together() -> None:
    scores, candidates, costs = chain(3, (4, 8, 12, 16))
    linear = [
        Cost(n, (Extent(0, ((n, 1),)),), (np.array((4, 8, 12, 16)),), np.array([4.0, 8, 12, 16]))
        for n in candidates
    ]
    both = {**costs, "params": linear}
    budgets = {"latency_us": 500.0, "params": 24.0}
    found = allocate(scores, candidates, both, budgets)
    assert all(found.predicted[r] <= b for r, b in budgets.items())


def test_a_concatenation_is_priced_exactly() -> None:
    scores, candidates, costs = chain(3, (4, 8, 12, 16))
    summed = Extent(2, (("g0", 1), ("g1", 2)))
    grid = np.arange(14, 51, 4)
    extra = Cost("cat", (summed,), (grid,), np.sqrt(grid) * 20)
    costs = {"latency_us": [*costs["latency_us"], extra]}
    budget = 450.0
    found = allocate(scores, candidates, costs, {"latency_us": budget})
    exact = sum(c.at(found.widths()) for c in costs["latency_us"])
    assert found.predicted["latency_us"] == pytest.approx(exact)
    assert exact <= budget
    best = best_by_enumeration(Problem(scores, candidates, costs, {"latency_us": budget}))
    assert found.objective >= 0.97 * best


def test_a_budget_out_of_reach_states_the_smallest() -> None:
    scores, candidates, costs = chain(3, (4, 8, 16))
    least = sum(c.at(dict.fromkeys(candidates, 4)) for c in costs["latency_us"])
    with pytest.raises(BudgetError, match="smallest reachable") as error:
        allocate(scores, candidates, costs, {"latency_us": least / 2})
    assert f"{least / 1000:.6g} ms" in str(error.value)


def test_a_loose_budget_prunes_nothing() -> None:
    scores, candidates, costs = chain(3, (4, 8, 16))
    found = allocate(scores, candidates, costs, {"latency_us": 1e9})
    assert all(len(units) == 16 for units in found.kept.values())
    assert found.gap == 0
