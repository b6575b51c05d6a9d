"""The text of a `Document`: one row per line, sorted, checked line by line (docs/tables.md).

In: a file. Out: a `Document`, or a TableError that names the line. Every row ends with a checksum
of itself, and the header has one of the whole, so that neither a changed line nor a missing one is
taken for a measurement.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hwprune.atomic import write_text
from hwprune.errors import TableError
from hwprune.lower.spec import Workload
from hwprune.table import SOURCES, Row, check_times
from hwprune.tables.document import Document, Entry, Origin

MAGIC = "# hwprune latency table 1"
COLUMNS = (
    "origin", "threads", "median_us", "p10_us", "p90_us", "repeats", "source", "date", "versions",
    "failure", "kernel", "check",
)  # fmt: skip
FINGERPRINT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # it names a file of the store
_HINT = "take the file anew from where it comes from; rows can only be changed by measuring"


@dataclass(frozen=True)
class _Place:
    """A line of a file, to complain about."""

    path: str
    number: int

    def error(self, what: str) -> TableError:
        return TableError(what, where=f"{self.path}:{self.number}", hint=_HINT)


def write_document(document: Document, path: Path) -> None:
    """Write a file, all or nothing."""
    write_text(path, to_text(document))


def to_text(document: Document) -> str:
    """The text: a header, the origins, the columns, the rows."""
    origins = document.origins
    lines = [f"# target: {document.target}", "# times: microseconds"]
    lines += [
        f"# origin {number}: {origin.fingerprint}\t{origin.toolchain}\t{origin.schedule}"
        for number, origin in enumerate(origins, start=1)
    ]
    lines.append("# " + "\t".join(COLUMNS))
    lines += [_line(entry, origins.index(entry.origin) + 1) for entry in document.entries]
    body = "\n".join(lines)
    return f"{MAGIC}\n# sha256: {_digest(body)}\n{body}\n"


def read_document(path: Path) -> Document:
    """Read a file. Raises TableError naming the line that is malformed or was changed."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"cannot be read: {error}", where=str(path)) from error
    return parse(text, str(path))


def parse(text: str, name: str) -> Document:
    """The document of a text. Raises TableError naming `name` and the line."""
    lines = text.removesuffix("\n").split("\n")
    if lines[0] != MAGIC:
        raise _Place(name, 1).error(f"is no latency table: its first line is not {MAGIC!r}")
    header = [line for line in lines if line.startswith("# ")]
    if lines[: len(header)] != header or len(header) < 5:
        raise _Place(name, len(header)).error("has a header that is not whole")
    target = _value(header, 2, "target", name)
    origins = tuple(_origins(header, name))
    entries = []
    for number, line in enumerate(lines[len(header) :], start=len(header) + 1):
        entries.append(_entry(line, origins, _Place(name, number)))
    _check_order(entries, _Place(name, len(header)))
    if _digest("\n".join(lines[2:])) != _value(header, 1, "sha256", name):
        raise _Place(name, 2).error(
            "does not hold what it held when it was written: lines are missing"
        )
    return Document(target, tuple(entries))


def _value(header: Sequence[str], at: int, key: str, name: str) -> str:
    start = f"# {key}: "
    if not header[at].startswith(start):
        raise _Place(name, at + 1).error(f"should say {start!r}")
    return header[at].removeprefix(start)


def _origins(header: Sequence[str], name: str) -> Iterator[Origin]:
    for number, line in enumerate(header[4:-1], start=1):
        parts = line.removeprefix(f"# origin {number}: ").split("\t")
        if len(parts) != 3 or not FINGERPRINT.fullmatch(parts[0]):
            raise _Place(name, number + 4).error(f"is not the line of origin {number}")
        yield Origin(*parts)
    if header[-1] != "# " + "\t".join(COLUMNS):
        raise _Place(name, len(header)).error("does not name the columns that are known")


def _line(entry: Entry, number: int) -> str:
    row = entry.row
    times = (
        ["", "", ""] if row.failure else [_us(t) for t in (row.median_us, row.p10_us, row.p90_us)]
    )
    fields = [
        str(number), str(row.threads), *times, str(row.repeats), row.source, row.date,
        row.versions, row.failure, row.workload.key(),
    ]  # fmt: skip
    clean = [" ".join(field.split()) for field in fields]
    return "\t".join([*clean, _check(clean[1:], entry.origin)])


def _us(time: float) -> str:
    """The shortest text that reads back as the same number."""
    return repr(float(time))


def _entry(line: str, origins: Sequence[Origin], place: _Place) -> Entry:
    fields = line.split("\t")
    if len(fields) != len(COLUMNS):
        raise place.error(f"has {len(fields)} fields, not {len(COLUMNS)}")
    number, *rest, check = fields
    if not number.isdigit() or not 1 <= int(number) <= len(origins):
        raise place.error(f"is of origin {number!r}, which the header does not have")
    origin = origins[int(number) - 1]
    if _check(rest, origin) != check:
        raise place.error("was changed: its checksum does not fit")
    return Entry(origin, _row(rest, place))


def _row(fields: Sequence[str], place: _Place) -> Row:
    threads, median, p10, p90, repeats, source, date, versions, failure, key = fields
    nan = float("nan")
    try:
        times = (nan, nan, nan) if failure else (float(median), float(p10), float(p90))
        row = Row(
            Workload.from_key(key), int(threads), *times, int(repeats), source, failure, versions,
            date,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise place.error(f"is malformed: {error}") from error
    wrong = check_times(row)
    if wrong or row.threads < 1 or source not in SOURCES or row.workload.key() != key:
        raise place.error(wrong or "has a source, a number of threads or a kernel that cannot be")
    return row


def _check_order(entries: Sequence[Entry], before: _Place) -> None:
    for number, (first, second) in enumerate(pairwise(entries), start=2):
        if first.key >= second.key:
            place = _Place(before.path, before.number + number)
            raise place.error("is not in its place: rows are sorted, and each kernel is there once")


def _check(fields: Sequence[str], origin: Origin) -> str:
    parts = (origin.fingerprint, origin.toolchain, origin.schedule, *fields)
    return _digest("\t".join(parts))[:8]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
