"""The report: report.json, a self-contained report.html with plots, and tables in the terminal.

In: the dict that `hwprune.account` makes (documented in docs/report.md). Out: files as bytes, and
text on a Rich console.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hwprune.report.page import to_html
from hwprune.report.summary import Report, facts, heading, rows

__all__ = ["facts", "print_groups", "print_report", "rows", "to_html", "write_report"]


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


def print_groups(found: Mapping[str, Any], console: Any) -> None:
    """Show what `hwprune.inspect` found in the terminal (a Rich console)."""
    columns: tuple[str, ...] = ("group", "width", "unit", "members", "")
    groups = [_group(group) for group in found["groups"]]
    _show(console, f"{found['model']}: prunable groups", columns, groups)
    if found["branches"]:
        columns = ("branch", "parameters", "sum", "groups within")
        listed = [
            (b["name"], str(b["params"]), b["sum"], "\n".join(b["groups"]))
            for b in found["branches"]
        ]
        _show(console, "Removable branches", columns, listed)
    frozen = [(f["name"], str(f["width"]), f["reason"], f["source"]) for f in found["frozen"]]
    _show(console, "Frozen", ("frozen", "width", "reason", "source"), frozen)


def _group(group: Mapping[str, Any]) -> tuple[str, ...]:
    """A row: name, width, size of a unit, the first members, what statistics run over it."""
    members = [f"{m['parameter']}[{m['dim']}]" for m in group["members"]]
    more = [f"and {len(members) - 4} more"] if len(members) > 4 else []
    unit = f"{group['unit_size']} rows" if group["unit_size"] > 1 else ""
    through = "through norm statistics" if group["through_norm_statistics"] else ""
    return group["name"], str(group["width"]), unit, "\n".join(members[:4] + more), through


def _show(
    console: Any, title: str, columns: Sequence[str], listed: Iterable[Sequence[str]]
) -> None:
    """A table that folds what is too long for the terminal; no cell is markup (`x[i]`)."""
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(*(Column(name, overflow="fold") for name in columns), title=escape(title))
    for cells in listed:
        table.add_row(*map(escape, cells))
    console.print(table)
