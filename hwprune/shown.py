"""How commands show what they do: progress, JSON, the report of an artifact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console


@contextmanager
def shown_progress(quiet: bool) -> Iterator[Any]:
    """Progress on standard error, or nothing."""
    from hwprune.progress import Silent, rich_progress

    if quiet:
        yield Silent()
    else:
        with rich_progress() as progress:
            yield progress


def print_json(data: Any) -> None:
    """Print data for other programs."""
    print(json.dumps(data, indent=1, default=str))


def show_report(report: dict[str, Any], as_json: bool) -> None:
    """The report of a run, as tables or as JSON."""
    from hwprune.report import print_report

    print_json(report) if as_json else print_report(report, Console())


def show_artifact(report: dict[str, Any], out: Path, as_json: bool) -> None:
    """The report of an artifact that was written."""
    show_report(report, as_json)
    if not as_json:
        Console().print(f"Artifact in {out}; open {out / 'report.html'}")
