"""What every benchmark shares: arguments, the machine, the result envelope, tables, statistics.

Out: a JSON document `{"machine", "versions", "date", "rows"}`, written all or nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hwprune.atomic import write_text
from hwprune.errors import HwpruneError

console = Console()
if not console.is_terminal:
    console = Console(width=120)  # a log: do not fold tables to 80 columns
BASE_PACKAGES = ("hwprune", "torch", "apache-tvm", "apache-tvm-ffi", "numpy")


def parser(doc: str, quick: str) -> argparse.ArgumentParser:
    """An argument parser with the options that all benchmarks have; `quick` describes --quick."""
    made = argparse.ArgumentParser(description=doc.strip().splitlines()[0])
    made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")
    return made


def machine() -> dict[str, Any]:
    """The CPU, its cores and the memory; nothing that names the host or its paths."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "architecture": platform.machine(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def versions(packages: Iterable[str] = ()) -> dict[str, str | None]:
    """Installed versions of the base packages and `packages`; None where one is missing."""
    found: dict[str, str | None] = {}
    for package in (*BASE_PACKAGES, *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def envelope(rows: Sequence[Mapping[str, Any]], packages: Iterable[str] = ()) -> dict[str, Any]:
    """The document of a benchmark: its rows with the machine, the versions and the date (UTC)."""
    return {
        "machine": machine(),
        "versions": versions(packages),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": [dict(row) for row in rows],
    }


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document as JSON, all or nothing; parent directories are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def finish(
    out: Path | None,
    rows: Sequence[Mapping[str, Any]],
    packages: Iterable[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the envelope (and `facts` about all rows) where --out asks for it, and say so."""
    if out is not None:
        write(out, envelope(rows, packages) | dict(facts or {}))
        console.print(f"written to {out}")


def rows_of(path: Path | None) -> list[dict[str, Any]]:
    """The rows that an earlier run has written, or none."""
    if path is None or not path.exists():
        return []
    return list(json.loads(path.read_text())["rows"])


def fill(
    out: Path | None,
    planned: Iterable[dict[str, Any]],
    make: Callable[[dict[str, Any]], dict[str, Any]],
    title: Callable[[dict[str, Any]], str],
) -> list[dict[str, Any]]:
    """The file's rows, and those planned that it lacks, made and written one by one.

    `planned` are what identifies a row. What failed says why, and is tried again.
    """
    rows = [row for row in rows_of(out) if "reason" not in row]
    for wanted in planned:
        if any(wanted.items() <= row.items() for row in rows):
            continue
        console.print(title(wanted))
        rows.append(attempt(wanted, make))
        finish(out, rows)
    return rows


def attempt(
    wanted: dict[str, Any], make: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """A row, or why there is none."""
    try:
        return wanted | make(wanted)
    except HwpruneError as error:
        return wanted | {"reason": str(error)}


def show_reasons(
    rows: Iterable[Mapping[str, Any]], title: Callable[[Mapping[str, Any]], str]
) -> None:
    """Print what failed, and why."""
    for row in rows:
        if "reason" in row:
            console.print(f"{title(row)}: {row['reason']}", style="yellow", markup=False)


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """`median_us`, `p10_us`, `p90_us` and `min_us` of samples in microseconds."""
    p10, median, p90 = np.quantile(np.asarray(samples, np.float64), (0.1, 0.5, 0.9))
    return {
        "median_us": round(float(median), 2),
        "p10_us": round(float(p10), 2),
        "p90_us": round(float(p90), 2),
        "min_us": round(float(min(samples)), 2),
    }


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1) -> None:
    """Print a table; the first `text` columns are aligned left, the others are numbers."""
    shown = Table(title=title)
    for i, head in enumerate(heads):
        shown.add_column(head, justify="left" if i < text else "right", no_wrap=i < text)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
