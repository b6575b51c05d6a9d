"""A GPU's measured table against what prices kernels without it: the model, and interpolation.

    python -m benchmarks.gpu_held_out targets/nvidia-h200/table.txt [--out FILE]

The model learns from one half of the kernels, drawn by their hash, and predicts the other, and the
other way round. Interpolation gives every inner width of a kernel from its two neighbours: twice
as far apart as where hwprune interpolates.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from hwprune.dtype import in_all_types
from hwprune.errors import HwpruneError, TableError
from hwprune.lower.spec import Workload
from hwprune.predict.device import device_of, works_of
from hwprune.predict.own import calibrate
from hwprune.provenance import provenance_of
from hwprune.tables import Document, Entry, read_document
from hwprune.tables.staircase import staircases
from hwprune.target import Target, load_target


def measured(document: Document, target: Target) -> Document:
    """The rows that count: of today's toolchain and schedules, measured. TableError without one."""
    known = map(provenance_of, in_all_types(target))
    today = {(found.toolchain, found.schedule) for found in known}
    entries = [
        e for e in document.entries
        if (e.origin.toolchain, e.origin.schedule) in today
        and e.row.source == "device" and not e.row.failure
    ]  # fmt: skip
    if not entries:
        raise TableError(
            "has no measured rows of today's schedules",
            where=document.target,
            hint="python -m benchmarks.gpu_table run",
        )
    return Document.of(document.target, entries)


def halves(document: Document) -> tuple[Document, Document]:
    """Two halves; a kernel is always in the same."""
    parts: tuple[list[Entry], list[Entry]] = ([], [])
    for entry in document.entries:
        digest = hashlib.sha256(entry.row.workload.key().encode()).digest()
        parts[digest[0] % 2].append(entry)
    return Document.of(document.target, parts[0]), Document.of(document.target, parts[1])


def model_errors(document: Document, target: Target) -> list[float]:
    """Predicted over measured, minus one, of every kernel by a model that has not seen it."""
    first, second = halves(document)
    errors = []
    for learnt, judged in ((first, second), (second, first)):
        model, device = calibrate(learnt, target).model, device_of(target, 1)
        for entry in judged.entries:
            work: Workload = entry.row.workload
            us = float(model.median_us(works_of(work, target, 1), device).sum())
            errors.append(us / entry.row.median_us - 1.0)
    return errors


def interpolation_errors(document: Document) -> list[float]:
    """The same of every width that has neighbours, from these."""
    errors = []
    for series in staircases(document):
        us = [row.median_us for row in series.rows]
        for i in range(1, len(us) - 1):
            ends = series.widths[i - 1 : i + 2 : 2], us[i - 1 : i + 2 : 2]
            errors.append(float(np.interp(series.widths[i], *ends)) / us[i] - 1.0)
    return errors


def describe(way: str, errors: Sequence[float]) -> dict[str, Any]:
    """A row: how many, their mean absolute error and its 95th percentile, per cent."""
    off = 100 * np.abs(errors)
    p95 = float(np.percentile(off, 95)) if len(off) else None
    mean = float(off.mean()) if len(off) else None
    return {"way": way, "kernels": len(off), "mape_percent": mean, "p95_percent": p95}


def main(argv: Sequence[str] | None = None) -> None:
    """Judge a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    document = read_document(args.table)
    target = load_target(document.target)
    found = measured(document, target)
    rows = [
        describe("model, half held out", model_errors(found, target)),
        describe("between measured widths", interpolation_errors(found)),
    ]
    for row in rows:
        common.console.print(row)
    common.finish(args.out, rows, ("scipy",), {"table": document.target})


if __name__ == "__main__":
    try:
        main()
    except HwpruneError as error:
        sys.exit(f"error: {error}")
