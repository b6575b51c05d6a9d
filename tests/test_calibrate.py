from pathlib import Path

import numpy as np
import pytest

from hwprune.calibrate import (
    Calibration,
    context_corrections,
    fit,
    load_calibration,
    save_calibration,
)
from hwprune.cost import Cost
from hwprune.coupling import Extent
from hwprune.errors import TableError
from hwprune.provenance import Provenance
from hwprune.table import LatencyTable

PROVENANCE = Provenance("machine", "tvm 1", "abc", "test")


def test_two_runs_recover_overhead_and_factor() -> None:
    found = fit([(1000.0, 50 + 1.1 * 1000), (400.0, 50 + 1.1 * 400)])
    assert found.overhead_us == pytest.approx(50)
    assert found.factor == pytest.approx(1.1)
    assert found.network_us(700.0) == pytest.approx(820)
    assert found.kernels_us(820.0) == pytest.approx(700)


def test_one_run_scales_or_with_corrections_adds() -> None:
    assert fit([(1000.0, 1200.0)]).network_us(500.0) == pytest.approx(600)
    assert fit([(1000.0, 1200.0)], {"conv": 1.1}).network_us(500.0) == pytest.approx(700)


def test_negative_overhead_is_not_believed() -> None:
    found = fit([(1000.0, 1100.0), (500.0, 500.0)])
    assert found.overhead_us == 0.0
    assert 500 / 500 < found.factor < 1100 / 1000


@pytest.mark.parametrize("runs", [[], [(0.0, 1.0)], [(1.0, float("nan"))], [(1.0, -1.0)]])
def test_useless_runs_are_refused(runs: list[tuple[float, float]]) -> None:
    with pytest.raises(TableError):
        fit(runs)


def test_corrections_per_call() -> None:
    axis = Extent(0, (("g", 1),))
    cost = Cost(
        "a", (axis,), (np.array([8, 16]),), np.array([10.0, 20.0]), count=2, calls=("a", "b")
    )
    ratios = context_corrections([cost], {"g": 16}, {"a": 30.0, "b": 1e9})
    assert ratios == {"a": 1.5, "b": 3.0}


def test_round_trip_through_the_table(tmp_path: Path) -> None:
    calibration = Calibration(12.5, 1.02, {"conv": 1.1}, 2)
    with LatencyTable.open(PROVENANCE, tmp_path) as table:
        assert load_calibration(table, "net", 1) is None
        save_calibration(table, "net", 1, calibration)
        assert load_calibration(table, "net", 1) == calibration
        assert load_calibration(table, "net", 2) is None


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"overhead_us": 0, "factor": 0, "corrections": {}, "runs": 1},
        {"overhead_us": float("inf"), "factor": 1, "corrections": {}, "runs": 1},
        {"overhead_us": 0, "factor": 1, "corrections": [], "runs": 1},
        {"overhead_us": 0, "factor": 1, "corrections": {"a": -1}, "runs": 1},
    ],
)
def test_malformed_calibration_is_refused(tmp_path: Path, raw: dict[str, object]) -> None:
    with LatencyTable.open(PROVENANCE, tmp_path) as table:
        table.put_calibration("net", 1, raw)
        with pytest.raises(TableError, match="calibration"):
            load_calibration(table, "net", 1)
