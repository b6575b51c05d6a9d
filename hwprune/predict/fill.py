"""`predict_rows`: rows for the table of a target that is not here, measured before or modelled.

In: workloads, a `Target`, its table. Out: rows that say `model`, or copies of what a board of this
target measured with the same toolchain and schedules, which say `device` and which board.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from hwprune.errors import HwpruneError
from hwprune.lower.spec import Workload
from hwprune.measure import Measured
from hwprune.predict.calibration import Calibrated, find_model
from hwprune.predict.device import Device, device_of, works_of
from hwprune.predict.model import Predicted
from hwprune.provenance import Provenance, provenance_of
from hwprune.table import LatencyTable, Row
from hwprune.tables.store import shipped
from hwprune.target import Target

BATCH = 64
MODEL = "model"


def is_predicted(target: Target) -> bool:
    """Whether this target's latencies come from a model where no board has measured them."""
    return target.runner != "local" or target.kind == "cuda"


def predict(workload: Workload, target: Target, threads: int) -> Predicted:
    """The latency of one kernel by the target's model. Raises HwpruneError where it has none."""
    device = device_of(target, threads)
    return _predict(workload, target, threads, device, find_model(target, device))


def open_predicted(target: Target) -> LatencyTable:
    """The table of a target that is not here, for its description and calibration of today."""
    device = device_of(target, 1)
    calibrated = find_model(target, device)
    digest = hashlib.sha256(f"{device}{calibrated.to_json()}{calibrated.source}".encode())
    known = provenance_of(target)
    return LatencyTable.open(
        replace(known, fingerprint=f"{MODEL}-{target.name}-{digest.hexdigest()[:16]}")
    )


def predict_rows(
    workloads: Iterable[Workload],
    target: Target,
    threads: int,
    table: LatencyTable,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Put a row for every kernel into the table: a board's where there is one, else the model's.

    A kernel that cannot be predicted is recorded as failed. One that a board could not measure has
    the model's row, as any that is not measured, and is reported as failed. Raises HwpruneError
    where the target has no calibration or its description lacks what a prediction needs.
    """
    started = time.perf_counter()
    device = device_of(target, threads)
    calibrated = find_model(target, device)
    wanted = tuple(dict.fromkeys(workloads))
    made: list[Row] = []
    broken: list[Workload] = []
    reused = 0
    ships = _shipped(target, table.provenance)
    with _board_tables(table) as boards:
        for done, workload in enumerate(wanted, start=1):
            known = table.get(workload, threads)
            measured = _measured(workload, threads, boards) or ships.get((workload.key(), threads))
            if measured is None and _is_broken(workload, threads, boards):
                broken.append(workload)
            if known is not None and (known.source != MODEL or measured is None):
                reused += 1
            else:
                made.append(measured or _row(workload, target, threads, device, calibrated))
            if progress is not None and (done % BATCH == 0 or done == len(wanted)):
                progress(done, len(wanted))
    table.put(made)
    failed = tuple(dict.fromkeys((*broken, *(row.workload for row in made if row.failure))))
    modelled = sum(row.source == MODEL for row in made)
    seconds = time.perf_counter() - started
    return Measured(reused, len(made) - modelled, failed, seconds, modelled)


def _row(
    workload: Workload, target: Target, threads: int, device: Device, calibrated: Calibrated
) -> Row:
    try:
        found = _predict(workload, target, threads, device, calibrated)
    except (HwpruneError, ValueError, KeyError, ZeroDivisionError) as error:
        nan = float("nan")
        why = f"cannot be predicted: {error}"
        return Row(workload, threads, nan, nan, nan, 0, source=MODEL, failure=why)
    return Row(workload, threads, found.median_us, found.low_us, found.high_us, 0, source=MODEL)


def _predict(
    workload: Workload, target: Target, threads: int, device: Device, calibrated: Calibrated
) -> Predicted:
    """The sum of the kernel's parts."""
    works, model = works_of(workload, target, threads), calibrated.model
    return model.bounded(float(model.median_us(works, device).sum()))


def _shipped(target: Target, provenance: Provenance) -> dict[tuple[str, int], Row]:
    """Measured rows that ship with the target, of today's toolchain and schedules."""
    found = shipped(target)
    rows = found.rows(provenance.toolchain, provenance.schedule) if found else {}
    return {key: row for key, row in rows.items() if row.source != MODEL}


def _measured(workload: Workload, threads: int, boards: Iterable[LatencyTable]) -> Row | None:
    for board in boards:
        row = board.get(workload, threads)
        if row is not None and not row.failure and row.source != MODEL:
            return replace(row, versions=f"{row.versions}; board {board.provenance.fingerprint}")
    return None


def _is_broken(workload: Workload, threads: int, boards: Iterable[LatencyTable]) -> bool:
    """Whether a board has tried to measure a kernel, in vain."""
    rows = (board.get(workload, threads) for board in boards)
    return any(row is not None and row.failure and row.source != MODEL for row in rows)


@contextmanager
def _board_tables(table: LatencyTable) -> Iterator[tuple[LatencyTable, ...]]:
    """Tables of boards beside a target's: those with rows of its toolchain and schedules."""
    with ExitStack() as stack:
        found = []
        for file in sorted(table.path.parent.glob("*.sqlite")):
            if file != table.path and not file.name.startswith(MODEL):
                board = stack.enter_context(_open_board(file, table.provenance))
                if board.count():
                    found.append(board)
        yield tuple(sorted(found, key=lambda board: -board.count()))


def _open_board(file: Path, provenance: Provenance) -> LatencyTable:
    return LatencyTable(file, replace(provenance, fingerprint=file.stem))
