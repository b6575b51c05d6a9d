"""Latency against width: the rows of kernels that differ in their output channels alone.

In: a `Document`. Out: `Staircase`s, those with the most points first.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from hwprune.lower.spec import Workload
from hwprune.table import Row
from hwprune.tables.document import Document, Origin

FEWEST = 3  # points that make a staircase
OPS = ("conv2d", "linear", "expand_depthwise")


@dataclass(frozen=True)
class Staircase:
    """Rows by ascending width; all else of the kernel is in `name`."""

    name: str
    origin: Origin
    widths: tuple[int, ...]
    rows: tuple[Row, ...]


def staircases(document: Document) -> tuple[Staircase, ...]:
    """Every series of kernels whose width alone changes, with `FEWEST` points at least."""
    series: dict[tuple[object, ...], dict[int, Row]] = defaultdict(dict)
    for entry in document.entries:
        row, work = entry.row, entry.row.workload
        if row.failure or work.op not in OPS:
            continue
        key = (entry.origin, row.threads, _without_width(work))
        series[key][_width(work)] = row
    found = []
    for (origin, threads, _), points in series.items():
        if len(points) < FEWEST or not isinstance(origin, Origin):
            continue
        widths = tuple(sorted(points))
        rows = tuple(points[width] for width in widths)
        found.append(Staircase(_name(rows[0].workload, threads), origin, widths, rows))
    return tuple(sorted(found, key=lambda s: (-len(s.widths), -s.rows[-1].median_us, s.name)))


def _width(work: Workload) -> int:
    return work.output.shape[_axis(work)]


def _axis(work: Workload) -> int:
    return len(work.output.shape) - 1 if work.op == "linear" else 1


def _without_width(work: Workload) -> Workload:
    """The workload with the output's width, and all that goes with it, set to one."""
    width, axis = _width(work), _axis(work)
    output = (*work.output.shape[:axis], 1, *work.output.shape[axis + 1 :])
    params = [tuple(1 if size == width and i == 0 else size for i, size in enumerate(p.shape))
              for p in work.params]  # fmt: skip
    added = [
        replace(t, shape=output) if t.shape == work.output.shape else t for t in work.inputs[1:]
    ]
    inputs = (work.inputs[0], *added)
    return replace(work, inputs=inputs).with_shapes([t.shape for t in inputs], output, params)


def _name(work: Workload, threads: object) -> str:
    given = "x".join(map(str, work.inputs[0].shape[1:]))
    kernel = "x".join(map(str, work.params[0].shape[2:])) if work.op == "conv2d" else ""
    words = [work.op.replace("_", " "), kernel, f"of {given}"]
    plural = "s" if threads != 1 else ""
    return " ".join(word for word in words if word) + f", {threads} thread{plural}"
