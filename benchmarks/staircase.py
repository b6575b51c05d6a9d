"""Latency over the width of a layer: is any width slower than the next multiple of the vector?

    python -m benchmarks.staircase [--quick] [--out FILE] [--threads N]

1x1 and 3x3 convolutions at 14x14 and depthwise ones at 28x28, every output width from 4 to 256.
The widths between two multiples of the vector width are compiled together and timed in turn, round
after round, as a network would run them; the ratio of a width to its next multiple is the median
over the rounds. A width that seems slower is an offender only if two more runs of the same widths
say so too.
With --out, a plot (PNG) is written beside the JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from hwprune.lower.spec import PACKED, Step, TensorSpec, Workload
from hwprune.measure import time_together
from hwprune.target import Target, load_target

WIDTHS = (4, 256)
INPUTS = (64, 256)
QUICK_WIDTHS, QUICK_INPUTS = (17, 32), (64,)
MARGIN, NOISE_US = 0.05, 0.3  # a width may cost so much more than the next multiple: share, and us
CONFIRM = 2  # more runs where a width seems to cost more; the least ratio counts
Row = dict[str, Any]


@dataclass(frozen=True)
class Series:
    """A kind of convolution of a fixed input width (None: as many inputs as outputs)."""

    op: str
    kernel: int
    inputs: int | None
    side: int = 14  # of the images

    @property
    def name(self) -> str:
        """What tables and plots call it."""
        return self.op if self.inputs is None else f"{self.op} of {self.inputs} channels"

    def workload(self, width: int) -> Workload:
        """The convolution of stride 1 with `width` outputs, bias and ReLU."""
        inputs, weights = (width, 1) if self.inputs is None else (self.inputs, self.inputs)
        image, pad = (self.side,) * 2, (self.kernel // 2,) * 4
        return Workload(
            "conv2d",
            (TensorSpec((1, inputs, *image), layout=PACKED),),
            TensorSpec((1, width, *image), layout=PACKED),
            (TensorSpec((width, weights, self.kernel, self.kernel)), TensorSpec((width,))),
            (("dilation", (1, 1)), ("padding", pad), ("stride", (1, 1))),
            (Step("bias"), Step("relu")),
        )


def all_series(inputs: Sequence[int]) -> tuple[Series, ...]:
    """1x1 and 3x3 at every input width, and depthwise."""
    dense = [Series(f"{k}x{k}", k, width) for k in (1, 3) for width in inputs]
    return (*dense, Series("depthwise", 3, None, side=28))


def steps(first: int, last: int, lanes: int) -> list[list[int]]:
    """The widths from first to last, each list up to and with a multiple of the vector width."""
    found = []
    for end in range(-(-first // lanes) * lanes, -(-last // lanes) * lanes + 1, lanes):
        found.append(list(range(max(first, end - lanes + 1), end + 1)))
    return found


def measure(
    series: Series,
    widths: Sequence[int],
    time: Callable[[Sequence[Workload]], np.ndarray],
) -> list[Row]:
    """The rows of the widths up to a multiple of the vector width; `time` compiles and times."""
    workloads = [series.workload(width) for width in widths]
    times = time(workloads)
    ratios = _ratios(times)
    most = 1 + MARGIN + NOISE_US / float(np.median(times[:, -1]))
    for _ in range(CONFIRM):
        if ratios.max() > most:
            ratios = np.minimum(ratios, _ratios(time(workloads)))
    rows: list[Row] = []
    for width, samples, ratio in zip(widths, times.T, ratios, strict=True):
        row: Row = {
            "op": series.op,
            "side": series.side,
            "inputs": series.inputs or width,
            "outputs": width,
        }
        row |= {"series": series.name, **common.quantiles(list(samples))}
        row["us_per_channel"] = round(row["median_us"] / width, 4)
        row |= {"next": widths[-1], "to_next": round(float(ratio), 3)}
        rows.append(row | {"offender": bool(ratio > most)})
    return rows


def _ratios(times: np.ndarray) -> np.ndarray:
    """Every width's time over that of the last, the multiple, of the same round: the median."""
    return np.asarray(np.median(times / times[:, -1:], axis=0))


def verdict(rows: Sequence[Row]) -> Row:
    """Whether the rule holds, and what breaks it."""
    offenders = [row for row in rows if row["offender"]]
    return {
        "rule": "no width costs more than the next multiple of the vector width",
        "margin": MARGIN,
        "noise_us": NOISE_US,
        "holds": not offenders,
        "widths": len(rows),
        "offenders": [
            {key: row[key] for key in ("series", "outputs", "next", "to_next")} for row in offenders
        ],
    }


def show(rows: Sequence[Row], lanes: int) -> None:
    """Print the multiples of the vector width; then the verdict and the offenders."""
    common.table(
        f"Latency over the width, vectors of {lanes}",
        ("series", "width", "median us", "us per channel", "worst to next", "at width"),
        [_cells(row, rows) for row in rows if row["outputs"] == row["next"]],
    )
    found = verdict(rows)
    kept = "holds" if found["holds"] else "is broken"
    broken = f"{kept}, {len(found['offenders'])} of {len(rows)}"
    text = f"{found['rule']} (+{MARGIN:.0%} and {NOISE_US} us): {broken}"
    common.console.print(text, markup=False)
    for row in found["offenders"]:
        text = f"{row['series']}: {row['outputs']} takes {row['to_next']:.2f} of {row['next']}"
        common.console.print(text, style="yellow", markup=False)


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    step = [r for r in rows if (r["series"], r["next"]) == (row["series"], row["next"])]
    worst = max(step, key=lambda r: (r["to_next"], r["outputs"]))
    values = [f"{row['median_us']:.1f}", f"{row['us_per_channel']:.3f}", f"{worst['to_next']:.2f}"]
    return [row["series"], str(row["outputs"]), *values, str(worst["outputs"])]


def plot(rows: Sequence[Row], file: Path) -> None:
    """Latency, and latency per channel, over the width; offenders are marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.5), layout="constrained")
    ops = list(dict.fromkeys(row["op"] for row in rows))
    axes = figure.subplots(2, len(ops), squeeze=False, sharex=True)
    for column, op in enumerate(ops):
        for line, value in enumerate(("median_us", "us_per_channel")):
            ax = axes[line][column]
            for name in dict.fromkeys(row["series"] for row in rows if row["op"] == op):
                mine = [row for row in rows if row["series"] == name]
                points = ([r["outputs"] for r in mine], [r[value] for r in mine])
                ax.plot(*points, marker=".", markersize=3, linewidth=0.8, label=name)
                bad = [r for r in mine if r["offender"]]
                points = ([r["outputs"] for r in bad], [r[value] for r in bad])
                ax.plot(*points, "rx", markersize=5, linestyle="none")
            ax.set_ylim(bottom=0)
            ax.set_ylabel("us" if line == 0 else "us per channel")
            ax.grid(alpha=0.3)
        axes[0][column].legend(fontsize=8)
        axes[1][column].set_xlabel("output channels")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def run(target: Target, threads: int, inputs: Sequence[int], widths: tuple[int, int]) -> list[Row]:
    """All rows of all series, with what is being measured on the terminal."""
    rows: list[Row] = []
    with common.console.status("") as status:
        for series in all_series(inputs):
            for step in steps(*widths, target.lanes):
                status.update(f"{series.name}: {step[0]} to {step[-1]}")
                rows += measure(series, step, lambda ws: time_together(ws, target, threads))
    return rows


def main() -> None:
    parser = common.parser(__doc__, "widths 17 to 32, one input width")
    parser.add_argument("--threads", type=int, default=1, help="1 if not given")
    options = parser.parse_args()
    target = load_target("host")
    chosen = (QUICK_INPUTS, QUICK_WIDTHS) if options.quick else (INPUTS, WIDTHS)
    rows = run(target, options.threads, *chosen)
    show(rows, target.lanes)
    facts = {"threads": options.threads, "lanes": target.lanes}
    common.finish(options.out, rows, (), facts | {"verdict": verdict(rows)})
    if options.out is not None:
        plot(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
