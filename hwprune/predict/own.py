"""Calibration on our own kernels: what a board has measured teaches the model the rest.

In: a `Document` of measured rows of a target. Out: a `Calibrated` model of our schedules, with the
residual, which is theirs too.
"""

from __future__ import annotations

from collections import Counter

from hwprune.dtype import in_all_types
from hwprune.errors import TableError
from hwprune.predict.calibration import OURS, Calibrated
from hwprune.predict.device import described, device_of, works_of
from hwprune.predict.model import LatencyModel, Sample
from hwprune.predict.work import OTHER
from hwprune.provenance import provenance_of
from hwprune.table import Row
from hwprune.tables import Document
from hwprune.target import Target

FEWEST = 40  # measured kernels that a calibration is made of


def calibrate(document: Document, target: Target) -> Calibrated:
    """The model of a target from its measured rows, of the thread count that most of them have.

    Rows of today's toolchain and schedules count, of a GPU in all its types; the layer of a
    validation is a kernel whatever its epilogue. Raises TableError where there are fewer than
    `FEWEST`.
    """
    types = in_all_types(target) if target.gpu is not None else (target,)
    rows: dict[tuple[str, int], Row] = {}
    for today in map(provenance_of, types):
        rows |= document.rows(today.toolchain, today.schedule)
    measured = [row for row in rows.values() if row.source != "model"]
    threads = Counter(row.threads for row in measured).most_common(1)
    used = [row for row in measured if row.threads == threads[0][0]]
    samples = []
    for row in used:
        works = works_of(row.workload, target, row.threads)
        if len(works) == 1 and works[0].algorithm != OTHER:  # a time of two parts teaches neither
            samples.append(Sample(works[0], row.median_us, repr(works[0].traits)))
    if len(samples) < FEWEST:
        raise TableError(
            f"has {len(samples)} measured kernels of today's schedules that a model learns from",
            where=document.target,
            hint=f"at least {FEWEST}: run hwprune profile on the device",
        )
    device = device_of(target, used[0].threads)
    model = LatencyModel.fit(samples, device, described(device))
    board = max(entry.origin.fingerprint for entry in document.entries)
    source = f"{board}, {used[0].threads} threads"
    return Calibrated(model, target.name, OURS, source, len(samples), described(device).interval)
