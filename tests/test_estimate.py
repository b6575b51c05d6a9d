"""Latency budgets for a device that is not here: predicted, met, and never called measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hwprune.budget import LATENCY, Budget
from hwprune.capture import capture
from hwprune.errors import BudgetError, TargetError
from hwprune.estimate import estimate_network
from hwprune.obtain import is_predicted, open_table
from hwprune.pipeline import prune
from hwprune.prepare import prepare
from hwprune.price import count_sources, latency_costs
from hwprune.profiling import profile
from hwprune.provenance import provenance_of
from hwprune.report import facts, to_html
from hwprune.report.summary import heading, rows
from hwprune.request import read_request
from hwprune.search_stages import dense_amount, stage_budgets
from hwprune.table import LatencyTable, Row
from hwprune.target import load_target
from hwprune.ways.iterative import prune_iteratively
from tests.small_net import small_net

X = (torch.zeros(1, 3, 32, 32),)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "cache"))


def test_only_devices_that_are_not_here_are_predicted() -> None:
    assert is_predicted(load_target("cortex-a72"))
    assert not is_predicted(load_target("x86-64-v3"))
    with pytest.raises(TargetError, match="5 threads on 4 cores"):
        read_request(target="cortex-a72", threads=5, latency="50%")


def test_a_budget_is_met_and_the_report_says_how() -> None:
    result = prune(small_net(), X, target="cortex-a72", latency="60%", name="small")
    report = result.report
    assert 0.5 < report["ratio"] <= 0.6
    for side in ("dense", "pruned"):
        found = report[side]
        assert found["latency_source"] == "model"
        assert found["latency_low_us"] < found["latency_us"] < found["latency_high_us"]
        kernels = sum(k[f"{side}_us"] for k in report["kernels"])
        assert kernels == pytest.approx(found["latency_us"])
    sources = report["sources"]
    assert sources["measured"] == sources["interpolated"] == sources["newly_measured"] == 0
    assert sources["modelled"] > sources["newly_modelled"] > 0
    assert heading(report).endswith("latency predicted by a model")
    assert facts(report)[0][0] == "latency, predicted by a model"
    assert "kernels on cortex-a72" in facts(report)[0][1]
    shown = " ".join(" ".join(line) for line in (*rows(report), *facts(report)))
    assert "latency, measured" not in shown
    assert "latency, measured" not in to_html(report)
    assert report["curve"][0]["importance_kept"] == 1.0
    with open_table(load_target("cortex-a72")) as table:
        again = estimate_network(result.program, result.target, 1, table)
    assert again.median_us == pytest.approx(report["pruned"]["latency_us"])
    with pytest.raises(BudgetError, match="smallest reachable"):
        prune(small_net(), X, target="cortex-a72", latency="1us")


def test_profile_predicts_and_resumes() -> None:
    first = profile(small_net(), X, target="cortex-a53")
    assert first.predicted > 10
    assert (first.measured, first.reused, first.failed) == (0, 0, ())
    assert "on cortex-a53" in first.model
    second = profile(small_net(), X, target="cortex-a53")
    assert (second.predicted, second.reused) == (0, first.predicted)


def test_measured_rows_count_as_such_but_a_sum_is_no_measurement() -> None:
    target = load_target("cortex-a72")
    prepared = prepare(capture(small_net(), X), target, 1)
    profile(small_net(), X, target="cortex-a72")
    with open_table(target) as table:
        modelled = latency_costs(prepared.sites, prepared.candidates, table, 1)
        assert {cost.source for cost in modelled} == {"model"}
        rows_now = list(table.rows())
        board = replace(provenance_of(target), fingerprint="aarch64-board")
        with LatencyTable.open(board) as measured:
            measured.put(
                [
                    Row(r.workload, 1, 0.5 * r.median_us, 0.4 * r.median_us, r.median_us, 20)
                    for r in rows_now
                ]
            )
    done = profile(small_net(), X, target="cortex-a72")
    assert (done.measured, done.predicted) == (len(rows_now), 0)
    with open_table(target) as table:
        costs = latency_costs(prepared.sites, prepared.candidates, table, 1)
    assert {cost.source for cost in costs} == {"device"}
    assert count_sources(costs).measured > 0
    assert count_sources(modelled).measured == 0
    report = prune(small_net(), X, target="cortex-a72", latency="70%").report
    assert report["dense"]["latency_source"] == "model"
    assert "measured on a board" in report["latency_model"]


def test_stages_share_a_predicted_budget() -> None:
    prepared = prepare(capture(small_net(), X), load_target("cortex-a72"), 1)
    dense_us = dense_amount(LATENCY, prepared)
    budgets = stage_budgets({LATENCY: Budget(LATENCY, 0.25 * dense_us, False)}, prepared, [], 2)
    assert budgets[LATENCY].value == pytest.approx(0.5 * dense_us)


def test_steps_are_predicted() -> None:
    stepped = prune_iteratively(small_net(), X, target="cortex-a72", latency="50%", steps=2)
    assert stepped.report["pruned"]["latency_source"] == "model"
    assert 0.4 < stepped.report["ratio"] <= 0.51
