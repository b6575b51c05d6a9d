"""Between text files and the local store: what was measured here goes out, others' rows come in.

In: a target's name and the directory of SQLite tables (one file per device), or a `Document`. Out:
a `Document`; or rows in the store, each in its device's file, under its own toolchain and schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hwprune.dtype import in_all_types
from hwprune.errors import TableError
from hwprune.provenance import Provenance, cache_directory, provenance_of
from hwprune.table import LatencyTable
from hwprune.tables.document import Document, Entry, Origin
from hwprune.tables.text import read_document
from hwprune.target import Target, load_target, target_directories

SHIPPED = "table.txt"


def store_directory() -> Path:
    """Where the tables of this user are."""
    return cache_directory() / "tables"


def export(target: str, *, every: bool = False, models: bool = False) -> Document:
    """What the store has of a target: of today's toolchain and schedules, or of `every`.

    Rows of all types that it computes in: those of float16 have a toolchain of their own.

    `models`: rows that were predicted too. Raises TableError where there is none.
    """
    today = _today(load_target(target))
    entries = [
        entry
        for entry in _stored(target)
        if (models or entry.row.source != "model")
        and (every or (entry.origin.toolchain, entry.origin.schedule) in today)
    ]
    if not entries:
        raise TableError(
            "there are no rows of this target in the store",
            where=target,
            hint="run hwprune profile, or pass --every or --models",
        )
    return Document.of(target, entries)


def _today(target: Target) -> set[tuple[str, str]]:
    """(toolchain, schedule version) of today in every type that a target computes in."""
    known = map(provenance_of, in_all_types(target))
    return {(found.toolchain, found.schedule) for found in known}


def bring_in(document: Document) -> tuple[int, int]:
    """Put a document's rows into the store; how many were put and how many were there already.

    A row of the store is replaced only by a later one. Raises TableError where a file is no table.
    """
    put = kept = 0
    for origin in document.origins:
        rows = [e.row for e in document.entries if e.origin == origin]
        path = store_directory() / f"{origin.fingerprint}.sqlite"
        provenance = Provenance(origin.fingerprint, origin.toolchain, origin.schedule, "")
        with LatencyTable(path, provenance) as table:
            known = [table.get(row.workload, row.threads) for row in rows]
            newer = [
                row
                for row, old in zip(rows, known, strict=True)
                if old is None or old.date < row.date
            ]
            table.put(newer)
            put, kept = put + len(newer), kept + len(rows) - len(newer)
    return put, kept


def shipped(target: Target) -> Document | None:
    """The table that ships with a target, if one does. Raises TableError where it is malformed."""
    files = (directory / target.name / SHIPPED for directory in target_directories())
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    found = read_document(file)
    if found.target != target.name:
        raise TableError(f"is a table of target {found.target!r}", where=str(file))
    return found


def _stored(target: str) -> Iterator[Entry]:
    for path in sorted(store_directory().glob("*.sqlite")):
        known = Provenance(path.stem, "", "", "")
        with LatencyTable(path, known) as table:
            origins = [o for o in table.origins() if toolchain_target(o.toolchain) == target]
        for origin in origins:
            with LatencyTable(path, origin) as table:
                for row in table.rows():
                    yield Entry(Origin(path.stem, origin.toolchain, origin.schedule), row)


def toolchain_target(toolchain: str) -> str:
    """The target that a toolchain was given: the word before its digest."""
    words = toolchain.split()
    return words[-2] if len(words) > 1 else ""
