"""The report: report.json, a self-contained report.html with plots, and tables in the terminal.

In: the dict that `hwprune.account` makes (documented in docs/report.md). Out: files as bytes, and
text on a Rich console.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    from rich.table import Table

    columns = ("group", "width", "unit", "members", "")
    table = Table(*columns, title=f"{found['model']}: prunable groups")
    for group in found["groups"]:
        members = [f"{m['parameter']}[{m['dim']}]" for m in group["members"]]
        more = f" and {len(members) - 4} more" if len(members) > 4 else ""
        unit = f"{group['unit_size']} rows" if group["unit_size"] > 1 else ""
        through = "through norm statistics" if group["through_norm_statistics"] else ""
        listed = ", ".join(members[:4]) + more
        table.add_row(group["name"], str(group["width"]), unit, listed, through)
    console.print(table)
    if found["branches"]:
        table = Table("branch", "parameters", "sum", "groups within", title="Removable branches")
        for row in found["branches"]:
            groups = ", ".join(row["groups"])
            table.add_row(row["name"], str(row["params"]), row["sum"], groups)
        console.print(table)
    table = Table("frozen", "width", "reason", "source", title="Frozen")
    for row in found["frozen"]:
        table.add_row(row["name"], str(row["width"]), row["reason"], row["source"])
    console.print(table)
