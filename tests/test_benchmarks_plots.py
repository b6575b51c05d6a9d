"""Plots of the accuracy benchmarks: every system is a line, and only what was measured is drawn."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import accuracy_plot
from benchmarks.accuracy_plot import agreement, stages


def tuned(system: str, speedup: float, last: float | None) -> dict:
    row = {"model": "vgg", "system": system, "seed": 0, "speedup": speedup, "acc_dense": 94.0}
    return row | {"acc_recovered": 92.0, "acc_1": 92.5, "acc_3": 93.0, "acc_10": last}


def test_agreement_over_latency() -> None:
    rows = [
        {"system": "hwprune", "ratio": 0.6, "top1_agreement": 0.6},
        {"system": "hwprune", "ratio": 0.5, "top1_agreement": 0.4},
        {"system": "peer", "ratio": 0.5, "top1_agreement": 0.1},
        {"system": "other", "budget": 0.5, "reason": "out of reach"},
    ]
    figure = Figure()
    agreement(figure, rows)
    (axes,) = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {"hwprune": [[50.0, 40.0], [60.0, 60.0]], "peer": [[50.0, 10.0]]}


def test_a_panel_for_what_was_fine_tuned() -> None:
    rows = [
        tuned("hwprune", 2.0, 94.0),
        tuned("width", 2.0, 93.0) | {"acc_recovered": None},
        tuned("hwprune", 1.5, None),
        {"model": "vgg", "system": "peer", "seed": 0, "speedup": 2.0, "reason": "cannot"},
    ]
    figure = Figure()
    stages(figure, rows)
    (axes,) = figure.axes
    assert axes.get_title() == "vgg, 2x"
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["hwprune"] == [[0, 92.0], [1, 92.5], [2, 93.0], [3, 94.0]]
    assert lines["width"] == [[1, 92.5], [2, 93.0], [3, 93.0]]
    assert set(lines) == {"hwprune", "width", "dense"}


def test_a_system_has_one_colour_in_all_panels() -> None:
    figure = Figure()
    stages(
        figure, [tuned("hwprune", 2.0, 94.0), tuned("peer", 2.0, 93.0), tuned("peer", 4.0, 92.0)]
    )
    colours = {
        (i, li.get_label()): li.get_color() for i, a in enumerate(figure.axes) for li in a.lines
    }
    assert colours[0, "peer"] == colours[1, "peer"] != colours[0, "hwprune"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["hwprune", "peer", "dense"]


def test_files(tmp_path: Path) -> None:
    accuracy_plot.draw("accuracy", [tuned("hwprune", 2.0, 94.0)], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
