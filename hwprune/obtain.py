"""Where latencies of kernels come from: measured here or on boards, or predicted where neither is.

In: workloads and a `Target`. Out: its open table, and rows in it that say their source.
"""

from __future__ import annotations

from collections.abc import Iterable

from hwprune.lower.spec import Workload
from hwprune.measure import Measured, Progress, measure
from hwprune.predict.fill import is_predicted, open_predicted, predict_rows
from hwprune.provenance import provenance_of
from hwprune.remote.measure import BoardTable, measure_on
from hwprune.table import LatencyTable
from hwprune.target import Target

__all__ = ["is_predicted", "obtain", "open_table"]


def obtain(
    workloads: Iterable[Workload],
    target: Target,
    threads: int,
    table: LatencyTable,
    *,
    progress: Progress | None = None,
    boards: BoardTable | None = None,
) -> Measured:
    """Give every kernel a row, as `measure`, `measure_on` (given `boards`) and `predict_rows` say.

    Raises what these raise.
    """
    if boards is not None:
        return measure_on(boards, workloads, progress)
    fill = predict_rows if is_predicted(target) else measure
    return fill(workloads, target, threads, table, progress=progress)


def open_table(target: Target) -> LatencyTable:
    """The table of this machine or of a device that is not here, of today's code."""
    if is_predicted(target):
        return open_predicted(target)
    return LatencyTable.open(provenance_of(target))
