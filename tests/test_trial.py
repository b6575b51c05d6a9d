"""Plans tried out: the nearest wins, and images that judge are not reconstructed from."""

from __future__ import annotations

import pytest
import torch

from hwprune import trial
from hwprune.capture import capture
from hwprune.prepare import Prepared, prepare
from hwprune.target import load_target
from hwprune.trial import Kept, Trials
from tests.small_net import small_net

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(capture(small_net(), (X,)), load_target("host"), 1)


def plan(prepared: Prepared, share: float) -> Kept:
    """The first units of every group."""
    return {g.name: tuple(range(max(1, int(share * g.width)))) for g in prepared.coupling.groups}


def silent(done: int, total: int) -> None:
    """Progress that nobody sees."""


def test_the_plan_that_is_nearest(prepared) -> None:
    plans = [plan(prepared, share) for share in (0.25, 0.75, 0.5, 0.75)]
    seen: list[tuple[int, int]] = []
    trials = Trials(prepared, IMAGES)
    kept, program = trials.best(plans, lambda done, total: seen.append((done, total)))
    assert kept == plans[1]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    again = trials.reconstructed(kept).module.state_dict()
    for name, tensor in program.module.state_dict().items():
        assert torch.equal(tensor, again[name])


def test_the_error_is_that_of_the_images_that_judge(prepared) -> None:
    trials = Trials(prepared, IMAGES)
    program = trials.reconstructed(plan(prepared, 0.5))
    judges = IMAGES[:12]
    with torch.no_grad():
        whole, less = prepared.program.module(judges), program.module(judges)
    error = float((less - whole).square().sum() / whole.square().sum())
    assert trials._error(program) == pytest.approx(error, rel=1e-4)
    assert trials._error(prepared.program) == 0


def test_images_that_judge_are_not_reconstructed_from(prepared, monkeypatch) -> None:
    seen: list[torch.Tensor] = []
    real = trial.reconstruct

    def spy(dense, pruned, kept, batches, **options):
        seen.extend(batches)
        return real(dense, pruned, kept, batches, **options)

    monkeypatch.setattr(trial, "reconstruct", spy)
    Trials(prepared, IMAGES).reconstructed(plan(prepared, 0.5))
    assert torch.equal(torch.cat(seen), IMAGES[12:])
    seen.clear()
    few = Trials(prepared, IMAGES[:20])  # none judge
    assert not few.judge
    few.reconstructed(plan(prepared, 0.5))
    assert torch.equal(torch.cat(seen), IMAGES[:20])
