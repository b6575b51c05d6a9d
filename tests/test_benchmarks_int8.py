"""The int8 benchmark: its rows, its table, what peers are calibrated on."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import common, int8
from benchmarks.workers import Timing


def test_rows_say_why_there_is_no_number() -> None:
    missing = int8._row("net", 1, int8.SYSTEMS[0], None, "ImportError: no onnxruntime")
    assert (missing["median_us"], missing["reason"]) == (None, "ImportError: no onnxruntime")
    failed = int8._row("net", 1, int8.FLOAT, Timing(int8.FLOAT, reason="died"), None)
    assert failed["reason"] == "died"
    timed = Timing(int8.FLOAT, rounds_us=((3.0, 1.0), (2.0,)))
    assert int8._row("net", 1, int8.FLOAT, timed, None)["median_us"] == 2.0


def test_the_table_has_the_ratio_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"model": "net", "threads": 1, "system": name, "median_us": us}
        for name, us in zip(int8.SYSTEMS, (9000.0, None, 8000.0, 3200.0, 2000.0), strict=True)
    ]
    common.console.file = None  # the console of now, which is captured
    int8.show(rows)
    shown = capsys.readouterr().out
    assert "2.50" in shown
    assert "9.00" in shown


def test_peers_are_calibrated_on_the_same_inputs() -> None:
    images = int8._images("mobilenet_v2")
    reader = int8._Reader("x", images[:2])
    first, second, end = reader.get_next(), reader.get_next(), reader.get_next()
    assert first is not None
    assert second is not None
    assert np.array_equal(first["x"], images[:1].numpy())
    assert end is None
