"""`measure_on`: fill a latency table by timing kernels on boards; what is lost is tried again.

A finished batch is committed at once. A kernel that a board hangs, crashes or fails on, alone, is
set aside and tried once more, by itself; then it is recorded as failed. A board that is lost at any
other step costs nothing but that batch's time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from hwprune.errors import HwpruneError, TargetError
from hwprune.lower.spec import Workload
from hwprune.measure import BATCH, Measured, Progress, failed_row, timed_rows
from hwprune.provenance import provenance_of
from hwprune.remote import tracker
from hwprune.remote.address import Boards
from hwprune.remote.facts import BoardFacts
from hwprune.remote.fleet import Broken, Fleet, Gone, Timed, Unbuilt
from hwprune.table import LatencyTable, Row, describe
from hwprune.target import Target

TRIES = 2  # of a kernel that fails alone


@dataclass
class BoardTable:
    """The table of some boards, while they are connected to; `warnings` gather."""

    fleet: Fleet
    facts: BoardFacts
    table: LatencyTable
    warnings: list[str] = field(default_factory=list)

    def warn(self, texts: Iterable[str]) -> None:
        """Note each warning once."""
        self.warnings += [text for text in dict.fromkeys(texts) if text not in self.warnings]


@contextmanager
def open_boards(boards: Boards, target: Target, threads: int) -> Iterator[BoardTable]:
    """Connect to a board, check it, and open the table of its kind.

    Raises HwpruneError where no board answers or it cannot run the target's code.
    """
    with Fleet(boards, target, threads) as fleet:
        facts = fleet.identify()
        known = provenance_of(target)
        versions = f"{known.versions}, {facts.brief}"
        provenance = replace(known, fingerprint=facts.fingerprint, versions=versions)
        with LatencyTable.open(provenance) as table:
            found = BoardTable(fleet, facts, table)
            found.warn(facts.warnings(worked=False))
            yield found


def measure_on(
    boards: BoardTable, workloads: Iterable[Workload], progress: Progress | None = None
) -> Measured:
    """Time the kernels that the table lacks on the boards, and store every batch at once.

    Kernels that fail are recorded and reported, not raised. Raises TargetError when no board is
    left, or one has too little memory for a kernel; what was measured until then is kept.
    """
    started = time.perf_counter()
    wanted = tuple(dict.fromkeys(workloads))
    with boards.table.measuring():
        missing = boards.table.missing(wanted, boards.fleet.job.threads)
        reused = len(wanted) - len(missing)
        failed: tuple[Workload, ...] = ()
        if missing:
            tell = progress or (lambda done, total: None)
            failed = _Run(boards, missing, lambda done: tell(reused + done, len(wanted))).finish()
    return Measured(reused, len(missing), failed, time.perf_counter() - started)


class _Run:
    """Batches on their way through a fleet, until every kernel has a row."""

    def __init__(
        self, boards: BoardTable, missing: Sequence[Workload], report: Callable[[int], None]
    ) -> None:
        self.boards, self.fleet, self.report = boards, boards.fleet, report
        self.threads = boards.fleet.job.threads
        self.open, self.total = set(missing), len(missing)
        self.tries: Counter[Workload] = Counter()
        self.lost: Counter[tuple[Workload, ...]] = Counter()
        self.failed: list[Workload] = []
        where = boards.fleet.job.boards
        self.slots = 1 if where.server else min(where.devices, tracker.check_key(where))
        share = -(-len(missing) // self.slots)
        size = max(1, min(BATCH, share))
        for begin in range(0, len(missing), size):
            self.fleet.submit(missing[begin : begin + size])

    def finish(self) -> tuple[Workload, ...]:
        """Handle outcomes until nothing is open; the kernels that failed."""
        self.fleet.start(self.slots)
        left = self.slots
        while self.open:
            outcome = self.fleet.outcome()
            if isinstance(outcome, Timed):
                self._store(outcome)
            elif isinstance(outcome, Unbuilt):
                self._split(outcome)
            elif isinstance(outcome, Broken):
                self._again(outcome)
            elif isinstance(outcome, Gone):
                left -= 1
                self._gone(outcome, left)
        self.fleet.rest()
        return tuple(self.failed)

    def _store(self, outcome: Timed) -> None:
        table, facts = self.boards.table, outcome.facts
        self.boards.warn(facts.warnings(worked=True))
        versions = f"{provenance_of(self.fleet.job.target).versions}, {facts.brief}"
        self._put(table, timed_rows(outcome.workloads, self.threads, outcome.times, versions))

    def _fail(self, workload: Workload, reason: str) -> None:
        self.failed.append(workload)
        self._put(self.boards.table, [failed_row(workload, self.threads, reason)])

    def _put(self, table: LatencyTable, rows: Sequence[Row]) -> None:
        table.put(rows)
        self.open -= {row.workload for row in rows}
        self.report(self.total - len(self.open))

    def _split(self, outcome: Unbuilt) -> None:
        """Halves of a batch that cannot be built; one kernel alone fails, or is too big."""
        work = outcome.workloads
        if len(work) > 1:
            for half in (work[: len(work) // 2], work[len(work) // 2 :]):
                self.fleet.submit(half)
        elif outcome.needs_memory and isinstance(outcome.error, HwpruneError):
            raise TargetError(
                f"too little memory for the kernel {describe(work[0])}: it {outcome.error.what}",
                where=outcome.error.where,
                hint="free memory on the board; what was measured is kept",
            )
        else:
            self._fail(work[0], str(outcome.error))

    def _again(self, outcome: Broken) -> None:
        """Try a batch again: without the kernel that failed alone, and that one by itself."""
        work = outcome.workloads
        if outcome.kernel is None:
            self.lost[work] += 1
            if self.lost[work] < TRIES:
                self.fleet.submit(work)
            elif len(work) > 1:
                self._split(Unbuilt(work, HwpruneError(outcome.reason)))
            else:
                self._fail(work[0], outcome.reason)
            return
        suspect = work[outcome.kernel]
        rest = (*work[: outcome.kernel], *work[outcome.kernel + 1 :])
        if rest:
            self.fleet.submit(rest)
        self.tries[suspect] += 1
        if self.tries[suspect] < TRIES:
            self.fleet.submit((suspect,))
        else:
            self._fail(suspect, outcome.reason)

    def _gone(self, outcome: Gone, left: int) -> None:
        if outcome.fatal:
            raise outcome.error
        self.boards.warn([f"a board was lost: {outcome.error}"])
        if not left:
            error = outcome.error
            what, where = (getattr(error, name, "") for name in ("what", "where"))
            raise TargetError(
                f"no board is left: {what or error}",
                where=where,
                hint="what was measured is kept; run it again to go on",
            ) from error
