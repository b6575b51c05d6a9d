"""The report: report.json, a self-contained report.html with plots, and tables in the terminal.

In: the dict that `hwprune.account` makes (documented in docs/report.md). Out: files as bytes, and
text on a Rich console.
"""

from __future__ import annotations

import json
from typing import Any

from hwprune.report.page import to_html
from hwprune.report.summary import Report, facts, heading, rows

__all__ = ["facts", "print_report", "rows", "to_html", "write_report"]


def write_report(report: Report) -> dict[str, bytes]:
    """The report's files by name: report.json and report.html."""
    text = json.dumps(report, indent=1, default=float) + "\n"
    return {"report.json": text.encode(), "report.html": to_html(report).encode()}


def print_report(report: Report, console: Any) -> None:
    """Show a report in the terminal (a Rich console)."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(heading(report)), title_justify="left")
    for name in ("", "dense", "pruned", "ratio"):
        table.add_column(name, justify="right" if name else "left")
    for row in rows(report):
        table.add_row(*row)
    console.print(table)
    notes = Table(show_header=False, box=None)
    notes.add_column(style="dim")
    for what, value in facts(report):
        notes.add_row(escape(what), escape(value))
    console.print(notes)
