"""Latency tables as text files that ship, are compared and merged (docs/tables.md).

In: rows of `LatencyTable`s. Out: `Document`s, their text, and rows back in the local store.
"""

from __future__ import annotations

from hwprune.tables.document import Change, Document, Entry, Origin, diff, merge
from hwprune.tables.text import read_document, to_text, write_document

__all__ = [
    "Change",
    "Document",
    "Entry",
    "Origin",
    "diff",
    "merge",
    "read_document",
    "to_text",
    "write_document",
]
