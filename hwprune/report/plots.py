"""The plots of a report as SVG, narrow enough to be read on a phone."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hwprune.report.summary import Report, how

DENSE, PRUNED = "#9aa5b1", "#1f77b4"
WIDTH = 4.4  # inches: 422 CSS pixels
LONGEST = 30
FLOOR = 1e-4  # of the logarithmic axis
Plot = Callable[[Any, Report], None]


def draw(plot: Plot, report: Report) -> str:
    """One plot as a data URI."""
    import matplotlib
    from matplotlib.figure import Figure

    look: dict[Any, Any] = {"font.size": 9, "axes.axisbelow": True, "text.parse_math": False}
    with matplotlib.rc_context({**look, "svg.hashsalt": "hwprune"}):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        plot(figure, report)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def groups(figure: Any, report: Report) -> None:
    """Width of every group, before and after."""
    found = report["groups"]
    _bars(
        figure,
        [g["name"] for g in found],
        [g["before"] for g in found],
        [g["after"] for g in found],
        "units",
    )


def kernels(figure: Any, report: Report) -> None:
    """Microseconds of the longest kernels in the network, before and after."""
    found = sorted(report["kernels"], key=lambda k: -k["dense_us"])[:LONGEST]
    _bars(
        figure,
        [kernel_name(k) for k in found],
        [k["dense_us"] for k in found],
        [k["pruned_us"] for k in found],
        f"µs in the network, {how(report)}",
    )


def kernel_name(kernel: Mapping[str, Any]) -> str:
    """The parameter that a kernel reads, where it reads one: what the user calls it."""
    return str(kernel.get("parameter") or kernel["name"]).removesuffix(".weight")


def curve(figure: Any, report: Report) -> None:
    """Importance kept against predicted latency, over budgets."""
    axes = figure.subplots()
    points = report["curve"]
    latency_ms = [p["predicted_us"] / 1000 for p in points]
    axes.plot(latency_ms, [100 * p["importance_kept"] for p in points], "o-", color=PRUNED)
    if "latency_us" in report["pruned"]:
        here = report["pruned"]["latency_us"] / 1000
        axes.axvline(here, color=DENSE, ls="--", label=f"this model, {how(report)}")
        axes.legend(loc="lower right")
    axes.set_xlabel("latency, predicted (ms)")
    axes.set_ylabel("importance kept (%)")
    axes.grid(alpha=0.3)


def recovery(figure: Any, report: Report) -> None:
    """Error of every layer's output against the dense network's, before and after recovery."""
    axes = figure.subplots()
    found = report["recovery"]
    places = range(1, len(found) + 1)
    for key, colour in (("before", DENSE), ("after", PRUNED)):
        errors = [max(float(r[key]), FLOOR) for r in found]
        axes.semilogy(places, errors, ".-", color=colour, label=f"{key} recovery")
    axes.set_xlabel("layer, in network order")
    axes.set_ylabel("squared error / variance")
    axes.grid(alpha=0.3)
    axes.legend()


def _bars(
    figure: Any, names: Sequence[str], before: Sequence[float], after: Sequence[float], unit: str
) -> None:
    figure.set_size_inches(WIDTH, max(2.0, 0.17 * len(names) + 0.9))
    axes = figure.subplots()
    places = range(len(names))
    axes.barh(places, before, color=DENSE, height=0.85, label="dense")
    axes.barh(places, after, color=PRUNED, height=0.5, label="pruned")
    axes.set_yticks(places, [_tail(n) for n in names], fontsize=7.5)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.grid(axis="x", alpha=0.3)
    axes.margins(y=0.01)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False
    )


def _tail(name: str, length: int = 24) -> str:
    return name if len(name) <= length else "…" + name[1 - length :]
