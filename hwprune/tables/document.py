"""`Document`: rows of a latency table with where each was measured; merging and comparing them.

In: `Entry`s. Out: one document of several, or the changes from one to another. Rows of another
device, toolchain or schedule version stand side by side and are never mixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hwprune.errors import TableError
from hwprune.table import SOURCES, Row

Key = tuple[str, int]  # workload, threads


@dataclass(frozen=True, order=True)
class Origin:
    """What a measurement is valid for: the device, the toolchain, the version of the schedules."""

    fingerprint: str
    toolchain: str
    schedule: str


@dataclass(frozen=True)
class Entry:
    """A row and its origin."""

    origin: Origin
    row: Row

    @property
    def key(self) -> tuple[Origin, str, int]:
        """What only one entry of a document has, and by which they are sorted."""
        return self.origin, self.row.workload.key(), self.row.threads


@dataclass(frozen=True)
class Document:
    """All rows of a target, sorted by key; each key once."""

    target: str
    entries: tuple[Entry, ...]

    @staticmethod
    def of(target: str, entries: Iterable[Entry]) -> Document:
        """Sorted. Raises TableError where a key is there twice."""
        found = sorted(entries, key=lambda entry: entry.key)
        for first, second in pairwise(found):
            if first.key == second.key:
                raise TableError(f"has a kernel twice: {first.row.workload.op}", where=target)
        return Document(target, tuple(found))

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Those that there are rows of, sorted."""
        return tuple(sorted({entry.origin for entry in self.entries}))

    def rows(self, toolchain: str, schedule: str) -> dict[Key, Row]:
        """Usable rows of one toolchain and schedule version, of any device: the latest of each."""
        found: dict[Key, Row] = {}
        for entry in self.entries:
            row, origin = entry.row, entry.origin
            if (origin.toolchain, origin.schedule) != (toolchain, schedule) or row.failure:
                continue
            key = (row.workload.key(), row.threads)
            if key not in found or _rank(row) > _rank(found[key]):
                found[key] = row
        return found


@dataclass(frozen=True)
class Change:
    """A key that two documents differ in; a side that lacks it is None."""

    origin: Origin
    before: Row | None
    after: Row | None

    @property
    def ratio(self) -> float | None:
        """After over before, where both have a time."""
        if self.before is None or self.after is None or self.before.failure or self.after.failure:
            return None
        return self.after.median_us / self.before.median_us


def merge(documents: Sequence[Document]) -> Document:
    """All rows of all; of one key the better source, then the later date, then more repeats.

    Raises TableError where they are of different targets.
    """
    targets = sorted({document.target for document in documents})
    if len(targets) != 1:
        raise TableError(
            f"are tables of different targets: {', '.join(targets)}", hint="merge one target's"
        )
    best: dict[tuple[Origin, str, int], Entry] = {}
    for document in documents:
        for entry in document.entries:
            known = best.get(entry.key)
            if known is None or _rank(entry.row) > _rank(known.row):
                best[entry.key] = entry
    return Document.of(targets[0], best.values())


def diff(before: Document, after: Document, tolerance: float = 0.0) -> tuple[Change, ...]:
    """Keys that one lacks, or whose medians differ by more than a share of the former."""
    sides = [{entry.key: entry for entry in d.entries} for d in (before, after)]
    changes = []
    for key in sorted({*sides[0], *sides[1]}):
        rows = [side[key].row if key in side else None for side in sides]
        change = Change(key[0], rows[0], rows[1])
        if _differs(change, tolerance):
            changes.append(change)
    return tuple(changes)


def _differs(change: Change, tolerance: float) -> bool:
    if change.before is None or change.after is None:
        return True
    if change.before.failure or change.after.failure:
        return change.before.failure != change.after.failure
    if change.before.source != change.after.source:
        return True
    return abs((change.ratio or 1.0) - 1.0) > tolerance


def _rank(row: Row) -> tuple[int, bool, str, int]:
    return -SOURCES.index(row.source), not row.failure, row.date, row.repeats
