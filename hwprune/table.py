"""`LatencyTable`: measured kernel latencies in SQLite, one file per machine, shared by processes.

In: workloads and thread counts. Out: `Row`s with their provenance. A row is valid for exactly one
toolchain and one version of the schedules, so stale measurements are never mixed with new
ones. A row that cannot be trusted is an error that names it, never a guess.
"""

from __future__ import annotations

import fcntl
import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hwprune.errors import TableError
from hwprune.lower.spec import Workload
from hwprune.provenance import Provenance, cache_directory
from hwprune.row import SOURCES, Row, check_times, describe

__all__ = ["SOURCES", "LatencyTable", "Row", "describe"]

BUSY_SECONDS = 60.0
_WRITABLE = "set HWPRUNE_CACHE to a directory that can be written and has room"
_ENVIRONMENT = tuple(
    f"SQLITE_{name}" for name in ("FULL", "IOERR", "READONLY", "CANTOPEN", "BUSY", "PERM")
)  # errors of the disk or of other processes, not of the file's content

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS latency (
    workload TEXT NOT NULL, threads INTEGER NOT NULL, toolchain TEXT NOT NULL,
    schedule TEXT NOT NULL, median_us REAL, p10_us REAL, p90_us REAL, repeats INTEGER NOT NULL,
    source TEXT NOT NULL, failure TEXT NOT NULL, versions TEXT NOT NULL, date TEXT NOT NULL,
    PRIMARY KEY (workload, threads, toolchain, schedule));
CREATE TABLE IF NOT EXISTS calibration (
    network TEXT NOT NULL, threads INTEGER NOT NULL, toolchain TEXT NOT NULL,
    schedule TEXT NOT NULL, value TEXT NOT NULL, date TEXT NOT NULL,
    PRIMARY KEY (network, threads, toolchain, schedule));
"""
_VERSION = "1"
_COLUMNS = "median_us, p10_us, p90_us, repeats, source, failure, versions, date"


class LatencyTable:
    """The latencies of one machine under one toolchain and schedule version.

    Any number of processes may hold the same file open. Use as a context manager, or `close`.
    """

    def __init__(self, path: Path, provenance: Provenance) -> None:
        """Open or create the file. Raises TableError if it is not a table of this machine."""
        self.path = path
        self.provenance = provenance
        self._known: dict[tuple[str, int], Row] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise TableError(
                f"cannot be opened: {error}", where=str(path), hint=_WRITABLE
            ) from error
        with self._explained():
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            self._claim_file()

    @classmethod
    def open(cls, provenance: Provenance, directory: Path | None = None) -> LatencyTable:
        """The table of this machine in `directory` (by default the user's cache)."""
        directory = directory or cache_directory() / "tables"
        return cls(directory / f"{provenance.fingerprint}.sqlite", provenance)

    def get(self, workload: Workload, threads: int) -> Row | None:
        """The row of a kernel, or None. Raises TableError naming the row if it is corrupt."""
        key = (workload.key(), threads)
        if key not in self._known:
            with self._explained():
                found = self._db.execute(
                    f"SELECT {_COLUMNS} FROM latency WHERE workload=? AND threads=?"
                    " AND toolchain=? AND schedule=?",
                    (*key, self.provenance.toolchain, self.provenance.schedule),
                ).fetchone()
            if found is None:
                return None
            self._known[key] = self._row(workload, threads, found)
        return self._known[key]

    def put(self, rows: Iterable[Row]) -> None:
        """Write rows at once: all or none of them, durable when this returns."""
        rows = tuple(rows)
        date = datetime.now(UTC).isoformat(timespec="seconds")
        with self._explained(), self._transaction():
            for row in rows:
                failed = bool(row.failure)
                times = [None] * 3 if failed else [row.median_us, row.p10_us, row.p90_us]
                self._row(row.workload, row.threads, (*times, *self._tail(row, date)))
                self._db.execute(
                    "INSERT OR REPLACE INTO latency VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                    (
                        row.workload.key(),
                        row.threads,
                        self.provenance.toolchain,
                        self.provenance.schedule,
                        *times,
                        *self._tail(row, date),
                    ),
                )
        for row in rows:
            self._known.pop((row.workload.key(), row.threads), None)

    def missing(self, workloads: Iterable[Workload], threads: int) -> tuple[Workload, ...]:
        """Those without a row (not even a failed one), each once, in the order given."""
        distinct = dict.fromkeys(workloads)
        return tuple(w for w in distinct if self.get(w, threads) is None)

    def latency_us(self, workload: Workload, threads: int) -> float:
        """The measured median. Raises TableError if there is none."""
        row = self.get(workload, threads)
        if row is None:
            raise TableError(
                "has no row for this kernel",
                where=f"{self.path}: {describe(workload)}",
                hint="run hwprune profile",
            )
        if row.failure:
            raise TableError(
                f"this kernel could not be measured: {row.failure}",
                where=f"{self.path}: {describe(workload)}",
            )
        return row.median_us

    def failures(self, workloads: Iterable[Workload], threads: int) -> tuple[str, ...]:
        """Those of the kernels that have failed, a line each with the reason."""
        rows = (self.get(w, threads) for w in dict.fromkeys(workloads))
        return tuple(f"{describe(r.workload)}: {r.failure}" for r in rows if r and r.failure)

    def rows(self) -> Iterator[Row]:
        """Every row of this toolchain and schedule version. Raises TableError on a corrupt one."""
        with self._explained():
            found = self._db.execute(
                f"SELECT rowid, workload, threads, {_COLUMNS} FROM latency"
                " WHERE toolchain=? AND schedule=? ORDER BY rowid",
                (self.provenance.toolchain, self.provenance.schedule),
            ).fetchall()
        for number, key, threads, *values in found:
            try:
                workload = Workload.from_key(key)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._corrupt(f"row {number}", "its key is not a kernel") from error
            yield self._row(workload, threads, values)

    def origins(self) -> tuple[Provenance, ...]:
        """Every toolchain and schedule version that the file has rows of."""
        with self._explained():
            found = self._db.execute(
                "SELECT toolchain, schedule, MAX(versions) FROM latency GROUP BY 1, 2 ORDER BY 1, 2"
            ).fetchall()
        return tuple(Provenance(self.provenance.fingerprint, *texts) for texts in found)

    def count(self) -> int:
        """How many rows there are of this toolchain and schedule version."""
        with self._explained():
            found = self._db.execute(
                "SELECT COUNT(*) FROM latency WHERE toolchain=? AND schedule=?",
                (self.provenance.toolchain, self.provenance.schedule),
            ).fetchone()
        return int(found[0])

    def check(self) -> int:
        """Validate the file and every row; how many rows there are. Raises TableError."""
        with self._explained():
            answer = self._db.execute("PRAGMA quick_check").fetchone()[0]
        if answer != "ok":
            raise self._corrupt("", str(answer))
        return sum(1 for _ in self.rows())

    def get_calibration(self, network: str, threads: int) -> dict[str, Any] | None:
        """The stored calibration of a network (a fingerprint), or None."""
        with self._explained():
            found = self._db.execute(
                "SELECT value FROM calibration WHERE network=? AND threads=?"
                " AND toolchain=? AND schedule=?",
                (network, threads, self.provenance.toolchain, self.provenance.schedule),
            ).fetchone()
        if found is None:
            return None
        try:
            value = json.loads(found[0])
        except (ValueError, TypeError) as error:
            raise self._corrupt(f"calibration {network}", "not JSON") from error
        if not isinstance(value, dict):
            raise self._corrupt(f"calibration {network}", "not an object")
        return value

    def put_calibration(self, network: str, threads: int, value: dict[str, Any]) -> None:
        """Store a network's calibration."""
        key = (network, threads, self.provenance.toolchain, self.provenance.schedule)
        date = datetime.now(UTC).isoformat(timespec="seconds")
        with self._explained():
            self._db.execute(
                "INSERT OR REPLACE INTO calibration VALUES (?,?,?,?,?,?)",
                (*key, json.dumps(value), date),
            )

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Hold the machine: one process at a time measures, and none measures a row twice.

        The lock falls with its process. Rows that others wrote meanwhile are seen afterwards.
        """
        file = self.path.with_suffix(".lock")
        try:
            lock = open(file, "w")  # noqa: SIM115
        except OSError as error:
            raise TableError(
                f"cannot be locked: {error.strerror}", where=str(file), hint=_WRITABLE
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> LatencyTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tail(self, row: Row, date: str) -> tuple[Any, ...]:
        versions = row.versions or self.provenance.versions
        return (row.repeats, row.source, row.failure, versions, row.date or date)

    def _row(self, workload: Workload, threads: int, values: Sequence[Any]) -> Row:
        """A checked row. Raises TableError naming it."""
        median, p10, p90, repeats, source, failure, versions, date = values
        if failure and isinstance(failure, str) and median is None:
            median = p10 = p90 = math.nan
        else:
            wrong = check_times(
                Row(workload, threads, median, p10, p90, repeats, source, failure="")
            )
            if wrong:
                raise self._corrupt(describe(workload), wrong)
        texts = all(isinstance(t, str) for t in (source, failure, versions, date))
        if not isinstance(repeats, int) or repeats < 0 or not texts or source not in SOURCES:
            raise self._corrupt(describe(workload), f"repeats {repeats!r}, source {source!r}")
        return Row(workload, threads, median, p10, p90, repeats, source, failure, versions, date)

    def _claim_file(self) -> None:
        """Check that the file is of this format and machine; mark a new one."""
        for name, value in (("format", _VERSION), ("fingerprint", self.provenance.fingerprint)):
            self._db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))
            stored = self._db.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()[0]
            if stored != value:
                raise TableError(
                    f"is of {name} {stored}, not {value}", where=str(self.path), hint="delete it"
                )

    def _corrupt(self, row: str, why: str) -> TableError:
        where = f"{self.path}: {row}" if row else str(self.path)
        return TableError(
            f"is corrupt: {why}", where=where, hint="delete the file to measure again"
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn SQLite's errors into TableErrors that name the file."""
        try:
            yield
        except sqlite3.Error as error:
            environment = getattr(error, "sqlite_errorname", "").startswith(_ENVIRONMENT)
            raise TableError(
                f"cannot be used as a latency table: {error}",
                where=str(self.path),
                hint=_WRITABLE if environment else "delete the file to measure again",
            ) from error
