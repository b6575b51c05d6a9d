"""The plot of a search: quality against latency, measured or predicted, as SVG."""

from __future__ import annotations

import io
from typing import Any

from hwprune.report.plots import DENSE, PRUNED, WIDTH
from hwprune.report.summary import HOW


def draw_front(front: Any) -> str:
    """The SVG text for a `hwprune.front.Front`."""
    import matplotlib
    from matplotlib.figure import Figure

    look: dict[Any, Any] = {"font.size": 9, "axes.axisbelow": True, "text.parse_math": False}
    with matplotlib.rc_context({**look, "svg.hashsalt": "hwprune"}):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        _points(figure.subplots(), front)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _points(axes: Any, front: Any) -> None:
    best = sorted((p for p in front.points if p.on_front), key=lambda p: p.latency_us)
    axes.plot([p.latency_us / 1000 for p in best], [p.quality for p in best], color=PRUNED)
    for p in front.points:
        colour = PRUNED if p.on_front else DENSE
        if p.latency_low_us is not None:
            ends = [p.latency_low_us / 1000, p.latency_high_us / 1000]
            axes.plot(ends, [p.quality] * 2, color=colour, alpha=0.35, linewidth=4)
        axes.plot(p.latency_us / 1000, p.quality, "o", color=colour)
        axes.annotate(
            "dense" if p.point == 0 else str(p.point),
            (p.latency_us / 1000, p.quality),
            textcoords="offset points",
            xytext=(5, -9),
        )
    axes.set_xlabel(f"latency, {HOW[front.source]} (ms)")
    axes.set_ylabel(
        {"agreement": "agreement with the dense network"}.get(front.measure, "accuracy")
    )
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
