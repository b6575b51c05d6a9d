"""The baselines of the allocation benchmark: legal, within the budget, and never ahead of ours."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import allocation, baselines
from hwprune.budget import LATENCY, MACS, PARAMS
from hwprune.capture import capture
from hwprune.cost import Cost
from hwprune.coupling import Extent
from hwprune.prepare import Prepared, prepare
from hwprune.problem import Problem
from hwprune.score import score
from hwprune.target import load_target
from tests.small_net import small_net

METHODS = (allocation.OURS, *baselines.METHODS)
SHARES = (0.4, 0.55, 0.75)


def plain_net() -> nn.Module:
    """A chain of convolutions of several widths."""
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((3, 32, 64, 96, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def network(name: str, resource: str, share: float) -> Problem:
    """A small network priced in MACs or parameters; nothing is measured."""
    prepared, scores = analysed(name)
    costs = {MACS: prepared.macs, PARAMS: prepared.params}[resource]
    budget = share * prepared.dense(resource)
    return Problem(scores, prepared.candidates, {resource: costs}, {resource: budget})


@cache
def analysed(name: str) -> tuple[Prepared, dict[str, np.ndarray]]:
    module = {"plain": plain_net, "residual": small_net}[name]()
    program = capture(module, (torch.zeros(1, 3, 16, 16),))
    prepared = prepare(program, load_target("host"), 1)
    return prepared, score(program, prepared.coupling)


def staircase(share: float, seed: int = 0, concatenation: bool = False) -> Problem:
    """A chain with latencies in steps over input and output width, noisy as measured ones are."""
    rng = np.random.default_rng(seed)
    full = {"a": 24, "b": 32, "c": 48, "d": 16}
    grids = {g: np.arange(8, w + 1, 8) for g, w in full.items()}
    extents = {g: Extent(0, ((g, 1),)) for g in full}
    costs = [Cost("stem", (extents["a"],), (grids["a"],), 3.0 * grids["a"]), fixed(40.0)]
    for g, h in itertools.pairwise(full):
        table = np.outer(grids[g], np.ceil(grids[h] / 16))
        table *= rng.uniform(0.97, 1.03, table.shape)
        costs.append(Cost(f"{g}-{h}", (extents[g], extents[h]), (grids[g], grids[h]), table))
    if concatenation:
        both = Extent(0, (("b", 1), ("d", 1)))
        grid = np.arange(16, 49, 8)
        costs.append(Cost("cat", (both,), (grid,), 2.0 * grid))
    scores = {g: np.sort(rng.uniform(0, 1, w) ** 3)[::-1] for g, w in full.items()}
    candidates = {g: tuple(map(int, grid)) for g, grid in grids.items()}
    dense = sum(cost.at(full) for cost in costs)
    return Problem(scores, candidates, {LATENCY: costs}, {LATENCY: share * dense})


def fixed(cost: float) -> Cost:
    return Cost("fixed", (), (), np.array(cost))


PROBLEMS = {
    "plain, MACs": lambda share: network("plain", MACS, share),
    "plain, parameters": lambda share: network("plain", PARAMS, share),
    "residual, MACs": lambda share: network("residual", MACS, share),
    "staircase": staircase,
    "staircase, other scores": lambda share: staircase(share, seed=3),
    "concatenation": lambda share: staircase(share, concatenation=True),
}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_baselines_are_legal_and_within_the_budget(name: str, share: float) -> None:
    problem = PROBLEMS[name](share)
    for method in baselines.METHODS.values():
        widths = method(problem)
        assert set(widths) == set(problem.candidates)
        assert all(width in problem.candidates[g] for g, width in widths.items())
        assert problem.fits(widths)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_ours_keeps_at_least_as_much(name: str, share: float) -> None:
    rows = allocation.compare(PROBLEMS[name](share))
    assert [row["method"] for row in rows] == list(METHODS)
    assert all(row["budget_used"] <= 1 + 1e-9 for row in rows)
    assert rows[0]["objective"] == pytest.approx(rows[0]["importance"])
    assert rows[0]["gap"] < 0.005
    assert all(margin >= -1e-9 for margin in allocation.margins(rows).values())


@pytest.mark.parametrize("method", baselines.METHODS)
def test_a_budget_that_the_dense_network_meets_prunes_nothing(method: str) -> None:
    problem = staircase(1.0)
    full = baselines.widest(problem)
    assert baselines.METHODS[method](problem) == full


def test_the_knapsack_is_solved_exactly() -> None:
    problem = staircase(0.5)
    rng = np.random.default_rng(5)
    additive = {
        g: {w: w * float(rng.uniform(0.5, 2)) for w in options}
        for g, options in problem.candidates.items()
    }
    choices = itertools.product(*problem.candidates.values())
    every = [dict(zip(problem.candidates, c, strict=True)) for c in choices]
    best = max(problem.worth(w) for w in every if sum(additive[g][n] for g, n in w.items()) <= 70.0)
    found = baselines.solve_knapsack(problem, additive, 70.0)
    assert problem.worth(found) == pytest.approx(best)


def test_the_knapsack_sees_the_input_at_its_dense_width() -> None:
    table = np.array([[1.0, 2.0], [10.0, 30.0]])
    grid = np.array([8, 16])
    a, b = (Extent(0, ((g, 1),)) for g in "ab")
    cost = Cost("layer", (a, b), (grid, grid), table)
    scores = {g: np.ones(16) for g in "ab"}
    problem = Problem(scores, dict.fromkeys("ab", (8, 16)), {LATENCY: [cost]}, {LATENCY: 30.0})
    additive = baselines.additive_costs(problem)
    assert additive["b"] == {8: 10.0, 16: 30.0}
    assert additive["a"][8] == additive["a"][16]  # its gain is in the next layer's input


def test_a_baseline_over_the_budget_counts_for_nothing() -> None:
    rows = [
        {"method": "ours", "importance_share": 0.8, "budget_used": 1.0},
        {"method": "uniform", "importance_share": 0.9, "budget_used": 1.2},
        {"method": "greedy", "importance_share": 0.81, "budget_used": 0.99},
    ]
    found = allocation.margins(rows)
    assert found["uniform"] == pytest.approx(0.8)
    assert found["greedy"] == pytest.approx(-0.01)
