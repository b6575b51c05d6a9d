"""A budget is missed for good only where the narrowest network was measured to miss it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hwprune import latency, measure
from hwprune.bench import GpuHere, Network, Pair
from hwprune.budget import LATENCY, Budget
from hwprune.calibrate import Calibration
from hwprune.capture import capture
from hwprune.errors import BudgetError
from hwprune.latency import search
from hwprune.macs import macs
from hwprune.prepare import Prepared, measure_kernels, open_table, prepare
from hwprune.problem import Allocation
from hwprune.progress import Silent
from hwprune.score import score
from hwprune.solver import Solver
from hwprune.table import LatencyTable
from hwprune.target import load_target
from hwprune.turns import OVER, USUAL

DENSE_US = 100.0


@dataclass
class Disturbed:
    """A bench on which the dense network takes 100 us, and pruned ones what `ratios` say."""

    table: LatencyTable
    ratios: list[float]
    boards: None = None
    gpu: GpuHere | None = None
    board: str = ""
    warnings: tuple[str, ...] = ()

    def latency_us(self, network: Network) -> float:
        return DENSE_US

    def profile(self, network: Network) -> Mapping[str, float]:
        return {}

    def pair(self, dense: Network, pruned: Network) -> Pair:
        ratio = self.ratios.pop(0)
        return Pair(DENSE_US, ratio * DENSE_US, ratio)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)).eval()
    program = capture(net, (torch.zeros(8, 64),))
    return prepare(program, load_target("host"), 1)


@pytest.fixture(scope="module")
def measured(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with every kernel, and no calibration. Times are those of the multiply-adds."""

    def counted(workloads, target, threads) -> np.ndarray:
        return np.array([[1.0 + 1e-4 * macs(workload) for workload in workloads]])

    folder = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWPRUNE_CACHE", str(folder))
        patch.setattr(measure, "time_together", counted)
        with open_table(prepared.target) as table:
            measure_kernels(prepared, table, lambda done, total: None)
    return folder


@pytest.fixture
def outcome(prepared: Prepared, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`search` for 60 % of the latency, where pruned networks are measured at these shares."""
    cache = shutil.copytree(measured, tmp_path / "cache")
    monkeypatch.setenv("HWPRUNE_CACHE", str(cache))

    def searched(*ratios: float, gpu: GpuHere | None = None) -> latency.Outcome:
        @contextmanager
        def bench(target, threads, boards) -> Iterator[Disturbed]:
            with open_table(target) as table:
                yield Disturbed(table, list(ratios), gpu=gpu)

        monkeypatch.setattr(latency, "open_bench", bench)
        budgets = {LATENCY: Budget(LATENCY, 0.6, relative=True)}
        scores = score(prepared.program, prepared.coupling)
        return search(prepared, scores, budgets, Silent())

    return searched


def test_the_narrowest_network_is_measured_before_a_budget_is_given_up(outcome) -> None:
    """By the first run (90 % for 60 %) no plan can meet the budget; the second says otherwise."""
    found = outcome(0.9, 0.3, 0.7, 0.59)
    assert found.timing.attempts == 4
    assert found.timing.pair.ratio == 0.59 <= 0.6 * OVER


def test_a_narrowest_network_within_the_budget_is_kept_where_others_miss(outcome) -> None:
    found = outcome(0.9, 0.3, 0.7, 0.65, 0.64, 0.63, 0.62)
    assert found.timing.pair.ratio == 0.3


def test_a_budget_that_the_narrowest_network_misses_is_refused_with_its_latency(outcome) -> None:
    with pytest.raises(BudgetError, match=r"0\.06 ms asked, 0\.08 ms .* \(80\.0% .* measured\)"):
        outcome(0.9, 0.8)


def test_on_a_gpu_a_plan_that_misses_is_priced_as_it_was_measured(
    outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels may have a model's prices: there are more turns, and none is in vain."""
    real, chosen, seen = Solver.aim, list[Allocation](), list[float]()

    def aim(self: Solver, costs, calibration: Calibration, goal_us: float):
        if not chosen:
            chosen.append(real(self, costs, calibration, goal_us)[0])
        total = sum(cost.at(chosen[0].widths()) for cost in costs)
        seen.append(calibration.network_us(total) / DENSE_US)
        return chosen[0], False

    monkeypatch.setattr(Solver, "aim", aim)
    ratios = (0.9, 0.7, 0.8, 0.65, 0.6)
    found = outcome(*ratios, gpu=GpuHere("a GPU"))
    assert found.timing.attempts == len(ratios) > USUAL
    assert found.timing.pair.ratio == 0.6
    assert seen[1:] == pytest.approx(ratios[:-1])


def test_on_a_gpu_too_the_narrowest_network_decides(outcome) -> None:
    with pytest.raises(BudgetError, match=r"\(80\.0% .* measured\)"):
        outcome(0.9, 0.8, gpu=GpuHere("a GPU"))
