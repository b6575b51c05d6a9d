"""Scores asked again on the way: of the smaller network, in the dense network's places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import hwprune
from hwprune.budget import MACS, PARAMS
from hwprune.capture import capture
from hwprune.errors import HwpruneError
from hwprune.gradual import Gradual, approach, carry_over, check_steps, least_share, walk
from hwprune.importance import Importance
from hwprune.prepare import Prepared, narrowed, prepare
from hwprune.progress import Clock, Silent
from hwprune.score import score
from hwprune.solver import Solver
from hwprune.target import load_target
from tests.small_net import small_net

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(144, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(capture(small_net(), (X,)), load_target("host"), 1)


def asked(steps: int | None = None, images: torch.Tensor | None = IMAGES) -> Gradual:
    return Gradual(Importance().on(images), steps)


@pytest.mark.parametrize(
    ("share", "steps"), [(1.5, 1), (1.0, 1), (0.9, 1), (0.5, 2), (0.35, 3), (0.25, 4), (0.001, 6)]
)
def test_more_steps_the_more_goes(share, steps) -> None:
    assert asked().count(share) == steps


def test_steps_as_asked_and_one_without_images() -> None:
    assert asked(5).count(0.9) == 5
    assert asked(images=None).count(0.1) == 1
    assert asked(images=IMAGES[:63]).count(0.1) == 1
    assert asked(3, IMAGES[:63]).count(0.1) == 3


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "2", 101])
def test_impossible_steps(steps) -> None:
    with pytest.raises(HwpruneError, match=r"is impossible.*from 1 to 100"):
        check_steps(steps, images=True)


def test_steps_need_images() -> None:
    assert check_steps(1, images=False) == 1
    with pytest.raises(HwpruneError, match="unlabelled inputs"):
        hwprune.prune(small_net(), (X,), macs="50%", steps=2)


def test_new_scores_lie_where_the_units_were() -> None:
    old = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([4.0, 5.0]), "gone": np.array([6.0])}
    found = carry_over({"a": np.array([7.0, 8.0])}, old, {"a": (0, 2), "b": (1,), "gone": ()})
    assert found["a"].tolist() == [7.0, 0.0, 8.0]
    assert found["b"].tolist() == [0.0, 5.0]  # nothing of it can go any more: as before
    assert found["gone"].tolist() == [0.0]


def test_a_narrower_network_has_candidates_and_costs_near_it(prepared) -> None:
    widths = {g.name: max(1, g.width // 2) for g in prepared.coupling.groups}
    near = narrowed(prepared, widths)
    for group in prepared.coupling.groups:
        *some, last = near.candidates[group.name]
        assert last == group.width
        assert max(some) == widths[group.name]
    assert near.dense(MACS) == prepared.dense(MACS)
    common = {n: min(set(c) & set(prepared.candidates[n])) for n, c in near.candidates.items()}
    for few, many in zip(near.macs, prepared.macs, strict=True):
        assert few.at(common) == pytest.approx(many.at(common))


def test_each_step_solves_for_its_part_of_the_way(prepared) -> None:
    program = prepared.program
    scores = score(program, prepared.coupling, "l2")
    goal = 0.3 * prepared.dense(MACS)
    solver = Solver(prepared, scores, {MACS: goal}, {})
    seen: list[tuple[float, float]] = []

    def solve(eased: Solver, part: float):
        seen.append((part, eased.fixed[MACS] / prepared.dense(MACS)))
        return eased.count()

    assert least_share(solver) == pytest.approx(0.3)
    found, steps = approach(asked(3), solver, 0.3, solve, Silent())
    assert steps == 3
    # Two opinions of the dense network (its own l2 scores, and by the mean), three later on.
    parts = [1 / 3] * 2 + [2 / 3] * 3 + [1.0] * 3
    assert [part for part, _ in seen] == pytest.approx(parts)
    assert [macs for _, macs in seen] == pytest.approx([0.3**part for part in parts])
    assert found.fixed == solver.fixed
    for group in prepared.coupling.groups:
        left = int((found.scores[group.name] > 0).sum())
        if left < group.width:
            assert found.prepared.candidates[group.name][-2:] == (left, group.width)
    assert any((s == 0).any() for s in found.scores.values())


def test_scores_are_those_of_the_smaller_network(prepared) -> None:
    gradual, program = asked(), prepared.program
    before = score(program, prepared.coupling, "l2")
    everything = {g.name: tuple(range(g.width)) for g in prepared.coupling.groups}
    found = gradual.rescore(program, prepared, before, everything, lambda done, total: None)
    fresh = gradual.scorer(program, prepared.coupling, lambda done, total: None)
    (others,) = gradual.scorer.others(program, prepared.coupling, fresh, lambda done, total: None)
    for opinion, wanted in zip(found, (fresh, others, before), strict=True):
        for name in wanted:
            np.testing.assert_allclose(opinion[name], wanted[name], rtol=1e-5)
    assert any(not np.allclose(fresh[n], others[n]) for n in fresh)


def test_the_plan_that_does_best_goes_on(prepared, monkeypatch) -> None:
    """The other opinion keeps as much, and the better units."""
    gradual = asked()
    scores = gradual.scorer(prepared.program, prepared.coupling, lambda done, total: None)
    wrong = {name: -s for name, s in scores.items()}  # the strongest go first
    monkeypatch.setattr(type(gradual.scorer), "others", lambda *_: [scores])

    def halves(near: Prepared, some, part: float):
        assert part == 1
        order = {n: np.argsort(-s, kind="stable") for n, s in some.items()}
        return {n: tuple(sorted(o[: -(-len(o) // 2)].tolist())) for n, o in order.items()}

    near, chosen, steps = walk(gradual, prepared, wrong, 0.9, halves, Silent())
    assert (near, steps) == (prepared, 1)
    assert chosen is scores
    near, chosen, steps = walk(gradual, prepared, scores, 0.9, halves, Silent())
    assert chosen is scores  # the first of equals
    _, chosen, _ = walk(asked(1), prepared, wrong, 0.9, halves, Silent())
    assert chosen is wrong  # one step is asked for: nothing is tried


def test_few_images_try_nothing_out(prepared) -> None:
    few = asked(2, IMAGES[:24])
    scores = score(prepared.program, prepared.coupling, "l2")
    seen: list[float] = []

    def solve(near: Prepared, some, part: float):
        seen.append(part)
        return {g.name: tuple(range(-(-g.width // 2))) for g in prepared.coupling.groups}

    near, chosen, steps = walk(few, prepared, scores, 0.5, solve, Silent())
    assert steps == 2
    assert seen == [0.5]
    assert near is not prepared
    assert any((s == 0).any() for s in chosen.values())


def test_without_gradual_nothing_changes(prepared) -> None:
    solver = Solver(prepared, {}, {}, {})
    assert approach(None, solver, 0.2, lambda s, p: pytest.fail("solved"), Silent()) == (solver, 1)


def test_the_result_is_one_plan_of_the_dense_network() -> None:
    net, clock = small_net(), Clock()
    found = hwprune.prune(net, (X,), macs="40%", calibrate=IMAGES, progress=clock)
    assert found.report["scored_steps"] == 3
    assert {"score again, 1 of 2", "score again, 2 of 2"} <= clock.seconds.keys()
    assert found.report["pruned"]["macs"] <= 0.4 * found.report["dense"]["macs"]
    again = hwprune.prune(net, (X,), plan=found.plan, calibrate=IMAGES)
    torch.testing.assert_close(again.module(X), found.module(X))
    assert "scored_steps" not in again.report
    once = hwprune.prune(net, (X,), macs="40%", calibrate=IMAGES, steps=1)
    assert once.report["scored_steps"] == 1


def test_budgets_that_need_nothing_are_met_at_once() -> None:
    found = hwprune.prune(small_net(), (X,), macs="100%", calibrate=IMAGES)
    assert found.report["scored_steps"] == 1
    assert replace(found.plan, kept={}).kept == {}


def test_a_budget_that_is_loose_is_not_undercut_on_the_way(prepared) -> None:
    scores = score(prepared.program, prepared.coupling, "l2")
    fixed = {MACS: 0.3 * prepared.dense(MACS), PARAMS: 0.9 * prepared.dense(PARAMS)}
    seen: list[dict[str, float]] = []

    def solve(eased: Solver, part: float):
        seen.append({r: v / prepared.dense(r) for r, v in eased.fixed.items()})
        return eased.count()

    approach(asked(2), Solver(prepared, scores, fixed, {}), 0.3, solve, Silent())
    assert seen[0] == pytest.approx({MACS: 0.3**0.5, PARAMS: 0.9**0.5})
    assert seen[-1] == pytest.approx({MACS: 0.3, PARAMS: 0.9})
