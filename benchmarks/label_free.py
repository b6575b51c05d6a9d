"""Rows of benchmarks without labels: a system prunes to a share of the measured latency.

In: how a row of a system and a budget is made. Out: rows, written as they come; those that the file
has are not measured again, and what failed says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.accuracy_fit import Timed
from benchmarks.accuracy_subject import Subject, parameters
from hwprune.errors import HwpruneError

KEY = ("system", "budget")
Row = dict[str, Any]


def plan_rows(systems: Sequence[str], budgets: Sequence[float]) -> list[Row]:
    """What is measured, all budgets of a system first."""
    return [{"system": system, "budget": budget} for system in systems for budget in budgets]


def timed_facts(subject: Subject, timed: Timed) -> Row:
    """What is measured and counted of a pruned network before it is judged."""
    pair, program = timed.pair, timed.candidate.program
    return {
        "model": subject.network.name,
        "ratio": round(pair.ratio, 5),
        "latency_us": round(pair.pruned_us, 2),
        "dense_latency_us": round(pair.dense_us, 2),
        "latency_source": "device",
        "macs": subject.macs(program),
        "params": parameters(program),
    }


def measure(wanted: Row, make: Callable[[str, float], Row]) -> Row:
    """A row, or why there is none."""
    try:
        return wanted | make(wanted["system"], wanted["budget"])
    except HwpruneError as error:
        return wanted | {"reason": str(error)}


def fill(out: Path | None, planned: Sequence[Row], make: Callable[[str, float], Row]) -> list[Row]:
    """The file's rows and those that it lacks."""
    rows = [row for row in common.rows_of(out) if "reason" not in row]
    known = [{name: row[name] for name in KEY} for row in rows]
    for wanted in planned:
        if wanted in known:
            continue
        common.console.print(f"{wanted['system']} at {wanted['budget']:.0%}")
        rows.append(measure(wanted, make))
        common.finish(out, rows)
    return rows


def cells(row: Row) -> list[str]:
    """System, budget, latency and multiply-accumulates of a row, for a table."""
    return [
        row["system"],
        f"{100 * row['budget']:.0f} %",
        f"{100 * row['ratio']:.1f} %",
        f"{row['latency_us'] / 1000:.2f}",
        f"{row['macs'] / 1e6:.0f} M",
    ]


HEADS = ("system", "asked", "latency", "ms", "MACs")  # of `cells`


def show_failures(rows: Sequence[Row]) -> None:
    """What failed, and why."""
    for row in rows:
        if "reason" in row:
            line = f"{row['system']} at {row['budget']:.0%}: {row['reason']}"
            common.console.print(line, style="yellow", markup=False)
