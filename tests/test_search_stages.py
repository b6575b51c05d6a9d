"""Searches in stages: the share of a budget that each has, and what is left after all."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import hwprune
from hwprune.bench import Pair
from hwprune.budget import LATENCY, MACS, PARAMS, Budget
from hwprune.capture import capture
from hwprune.latency import search
from hwprune.prepare import prepare
from hwprune.progress import Silent
from hwprune.score import score
from hwprune.search_stages import Searched, merge, stage_budgets
from hwprune.target import load_target
from tests.small_net import small_net
from tests.test_branches import Encoder


@pytest.fixture(scope="module")
def searched() -> Searched:
    program = capture(small_net(), (torch.zeros(1, 3, 16, 16),))
    prepared = prepare(program, load_target("host"), 1)
    scores = score(program, prepared.coupling)
    budgets = {MACS: Budget(MACS, 0.5, relative=True)}
    return Searched(prepared, scores, search(prepared, scores, budgets, Silent()))


def test_every_stage_takes_the_same_share(searched: Searched) -> None:
    first = searched.prepared
    dense = first.dense(PARAMS)
    asked = {MACS: Budget(MACS, 0.25, relative=True), PARAMS: Budget(PARAMS, dense / 9, False)}
    assert stage_budgets(asked, first, [], 1) is asked
    begin = stage_budgets(asked, first, [], 2)
    assert begin[MACS] == Budget(MACS, 0.5, relative=True)
    assert begin[PARAMS].absolute(1.0) == pytest.approx(dense / 3)
    end = stage_budgets(asked, first, [searched], 2)
    assert end[MACS].absolute(1.0) == pytest.approx(0.25 * first.dense(MACS))
    assert end[PARAMS].absolute(1.0) == pytest.approx(dense / 9)
    loose = stage_budgets({MACS: Budget(MACS, 1e12, False)}, first, [], 2)
    assert loose[MACS].value == pytest.approx(first.dense(MACS))


def test_a_share_of_the_latency_counts_what_the_stage_before_was_measured_to_leave(
    searched: Searched,
) -> None:
    """Microseconds of an earlier stage would be those of an earlier clock speed."""
    asked = {LATENCY: Budget(LATENCY, 0.49, relative=True)}
    first = stage_budgets(asked, searched.prepared, [], 2)
    assert first == {LATENCY: Budget(LATENCY, pytest.approx(0.7), relative=True)}
    for left, wanted in ((0.5, 0.98), (0.7, 0.7), (0.4, 1.0)):
        timing = SimpleNamespace(pair=Pair(dense_us=90.0, pruned_us=left * 91.0, ratio=left))
        done = replace(searched, outcome=replace(searched.outcome, timing=timing))
        found = stage_budgets(asked, searched.prepared, [done], 2)
        assert found == {LATENCY: Budget(LATENCY, pytest.approx(wanted), relative=True)}


def test_one_stage_is_its_own_outcome(searched: Searched) -> None:
    assert merge([searched]) is searched.outcome


def test_branches_may_go_in_either_stage() -> None:
    torch.manual_seed(0)
    model, x = Encoder(1).eval(), torch.randn(1, 3, 8, 8)
    result = hwprune.prune(model, (x,), params="12%", attention="both", branches=True)
    left = dict(result.module.named_parameters())
    gone = [row for row in result.report["branches"] if not row["kept"]]
    assert gone
    for branch in result.coupling.branches:
        row = next(r for r in result.report["branches"] if r["name"] == branch.name)
        assert row["kept"] == bool(branch.parameters & left.keys())
    assert all(name in left for name in result.kept)
    assert sum(p.numel() for p in left.values()) == result.report["pruned"]["params"]
    assert result.report["pruned"]["params"] <= 0.12 * result.report["dense"]["params"]
