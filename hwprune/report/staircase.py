"""Plots of latency against width: points, what is interpolated between them, their interval.

In: `Staircase`s. Out: a picture as SVG.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from hwprune.report.plots import DENSE, PRUNED, WIDTH
from hwprune.tables.staircase import Staircase

MODELLED = "#d95f02"
MOST = 8


def draw_staircases(found: Sequence[Staircase]) -> str:
    """The SVG text for the first few staircases, one below the other."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = found[:MOST]
    look: dict[Any, Any] = {"font.size": 9, "axes.axisbelow": True, "text.parse_math": False}
    with matplotlib.rc_context({**look, "svg.hashsalt": "hwprune"}):
        figure = Figure(figsize=(WIDTH, 2.4 * len(shown)), layout="constrained")
        for axes, staircase in zip(
            figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True
        ):
            _draw(axes, staircase)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _draw(axes: Any, found: Staircase) -> None:
    widths, rows = found.widths, found.rows
    low, high = [r.p10_us for r in rows], [r.p90_us for r in rows]
    axes.fill_between(widths, low, high, color=DENSE, alpha=0.4, lw=0, label="interval")
    axes.plot(widths, [r.median_us for r in rows], color=PRUNED, lw=1, label="interpolated")
    for source, colour in (("device", PRUNED), ("emulator", DENSE), ("model", MODELLED)):
        points = [(w, r.median_us) for w, r in zip(widths, rows, strict=True) if r.source == source]
        if points:
            axes.plot(*zip(*points, strict=True), "o", ms=3, color=colour, label=source)
    axes.set_title(found.name, fontsize=8)
    axes.set_xlabel("width (output channels)")
    axes.set_ylabel("µs")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left")
