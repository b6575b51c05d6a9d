"""Sensitivity curves for people: a plot, and a table sorted by what hurts most.

In: a `Sensitivity`. Out: a picture file, and text on a Rich console.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwprune.atomic import write_bytes
from hwprune.curves import Curve, Sensitivity

FLOOR = 1e-6  # of the logarithmic axis
NAMED = 8  # of the most sensitive groups, in the legend


def save_plot(found: Sensitivity, path: Path) -> None:
    """Error over the share of a group that is kept, a line a group, as SVG."""
    import io

    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {"font.size": 9, "text.parse_math": False, "svg.hashsalt": "hwprune"}
    ):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        colours = matplotlib.colormaps["viridis"]
        named = {c.group for c in found.ranked()[:NAMED]}
        for i, curve in enumerate(found.curves):
            axes.semilogy(
                [p.width / curve.width for p in curve.points],
                [max(p.error, FLOOR) for p in curve.points],
                ".-",
                color=colours(i / max(1, len(found.curves) - 1)),
                label=curve.group if curve.group in named else None,
                lw=1.6 if curve.group in named else 0.7,
            )
        axes.set_xlabel("share of the group that is kept")
        axes.set_ylabel("squared error of the outputs / their square")
        axes.set_title(f"{found.model}: one group narrowed at a time (first layers dark)")
        axes.grid(alpha=0.3)
        axes.legend(title="most sensitive", fontsize=7.5)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_bytes(path, buffer.getvalue())


def print_sensitivity(found: Sensitivity, console: Any) -> None:
    """Show the curves in the terminal, the most sensitive group first."""
    from rich.table import Table

    shares = sorted({round(p.width / c.width, 2) for c in found.curves for p in c.points})[::-1]
    columns = [s for s in shares if s < 1 and sum(_at(c, s) != "" for c in found.curves) > 1]
    labelled = any(p.accuracy is not None for c in found.curves for p in c.points)
    what = "accuracy" if labelled else "error"
    title = f"{found.model}: {what} with one group alone at a share of its width"
    table = Table("group", "width", *(f"{s:.0%}" for s in columns), title=title)
    for curve in found.ranked():
        cells = (_at(curve, s) for s in columns)
        table.add_row(curve.group, str(curve.width), *cells)
    console.print(table)


def _at(curve: Curve, share: float) -> str:
    for point in curve.points:
        if round(point.width / curve.width, 2) == share:
            if point.accuracy is not None:
                return f"{point.accuracy:.1%}"
            return f"{point.error:.3g}"
    return ""
