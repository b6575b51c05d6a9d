"""Plots of the accuracy benchmarks' committed results, for docs/guide.md.

    python -m benchmarks.accuracy_plot [--results DIR] [--out DIR]

`lite0_latency.png`: top-1 agreement of EfficientNet-Lite0 over its measured latency, by system.
`accuracy.png`: Fashion-MNIST, per cent right of every system before and along fine-tuning, a panel
for each network and speed-up that was fine-tuned. Nothing is measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.accuracy_summary import summarise

ROOT = Path(__file__).resolve().parent
RESULTS, DOCS = ROOT / "results", ROOT.parent / "docs"
STAGES = ("acc_recovered", "acc_1", "acc_3", "acc_10")
TICKS = ("0", "1", "3", "10")
Row = Mapping[str, Any]


def agreement(figure: Any, rows: Sequence[Row]) -> None:
    """Agreement after recovery over the measured share of the latency, a line a system."""
    axes = figure.subplots()
    measured = [row for row in rows if "reason" not in row]
    for system in dict.fromkeys(row["system"] for row in measured):
        own = sorted((r for r in measured if r["system"] == system), key=lambda r: r["ratio"])
        axes.plot(
            [100 * r["ratio"] for r in own],
            [100 * r["top1_agreement"] for r in own],
            marker="o",
            label=system,
        )
    axes.set(xlabel="% of the dense latency, measured", ylabel="% that keep their class")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend()


def stages(figure: Any, rows: Sequence[Row]) -> None:
    """Accuracy without labels and after epochs of fine-tuning; dense as a line."""
    found = summarise([row for row in rows if "reason" not in row])
    tuned = [key for key, summary in found.items() if summary.mean(STAGES[-1]) is not None]
    panels = list(dict.fromkeys(key[:2] for key in tuned))
    systems = list(dict.fromkeys(key[2] for key in found))
    shown: dict[str, Any] = {}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for (model, speedup, system), summary in found.items():
            if (model, speedup) != panel:
                continue
            means = [summary.mean(name) for name in STAGES]
            places = [i for i, mean in enumerate(means) if mean is not None]
            dense = summary.mean("acc_dense")
            if places:
                color = f"C{systems.index(system)}"
                values = [means[i] for i in places]
                shown[system] = axes.plot(places, values, marker="o", color=color, label=system)[0]
        shown["dense"] = axes.axhline(dense, color="#9aa5b1", linestyle="--", label="dense")
        axes.set_xticks(range(len(TICKS)), TICKS)
        axes.set_xlabel("epochs with labels")
        axes.set_title(f"{panel[0]}, {panel[1]:g}x")
        axes.grid(alpha=0.3)
    names = [name for name in (*systems, "dense") if name in shown]
    figure.legend([shown[n] for n in names], names, loc="outside lower center", ncols=5)
    figure.supylabel("% right of 10,000")


PLOTS = {"lite0_latency": (agreement, 1), "accuracy": (stages, 2)}


def draw(name: str, rows: Sequence[Row], path: Path) -> None:
    """Write one plot as PNG."""
    from matplotlib.figure import Figure

    plot, width = PLOTS[name]
    figure = Figure(figsize=(6.0 * width, 4.5), layout="constrained")
    plot(figure, rows)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    for name in PLOTS:
        source, goal = options.results / f"{name}.json", options.out / f"{name}.png"
        if not source.exists():
            common.console.print(f"{source.name} is not there yet", style="yellow")
            continue
        draw(name, json.loads(source.read_text())["rows"], goal)
        common.console.print(f"written to {goal}")


if __name__ == "__main__":
    main()
