"""Rows of benchmarks without labels: a system prunes to a share of the measured latency.

In: how a row of a system and a budget is made. Out: rows, written as they come; those that the file
has are not measured again, and what failed says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.accuracy_fit import Timed
from benchmarks.accuracy_subject import Subject, parameters
from hwprune.errors import HwpruneError

HEADS = ("system", "asked", "latency", "ms", "MACs")
Row = dict[str, Any]
Cells = Callable[[Row], list[str]]


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
    return common.attempt(wanted, lambda row: make(row["system"], row["budget"]))


def fill(out: Path | None, planned: Sequence[Row], make: Callable[[str, float], Row]) -> list[Row]:
    """The file's rows and those that it lacks."""
    return common.fill(out, planned, lambda row: make(row["system"], row["budget"]), _title)


def _title(row: Mapping[str, Any]) -> str:
    return f"{row['system']} at {row['budget']:.0%}"


def show(title: str, heads: Sequence[str], rows: Sequence[Row], cells: Cells, by: str) -> None:
    """Print the rows by budget, the largest `by` first; what failed last, and why."""
    measured = [row for row in rows if "reason" not in row]
    common.table(
        title,
        (*HEADS, *heads),
        [
            [*_cells(row), *cells(row)]
            for row in sorted(measured, key=lambda r: (-r["budget"], -r[by]))
        ],
    )
    common.show_reasons(rows, _title)


def _cells(row: Row) -> list[str]:
    return [
        row["system"],
        f"{100 * row['budget']:.0f} %",
        f"{100 * row['ratio']:.1f} %",
        f"{row['latency_us'] / 1000:.2f}",
        f"{row['macs'] / 1e6:.0f} M",
    ]


def run(
    doc: str | None,
    systems: Sequence[str],
    budgets: Sequence[float],
    quick: Row,
    start: Callable[[bool], Callable[[str, float], Row]],
) -> list[Row]:
    """The command line of a benchmark, and its rows; `quick` is the one that --quick makes.

    `start(quick)` gives what makes a row; what it lacks ends the program with a message.
    """
    parser = common.parser(doc, "few inputs, one system, one budget: checks that it runs")
    parser.add_argument("--system", action="append", choices=[*systems], help="repeatable")
    parser.add_argument("--budget", action="append", type=float, help="share of the dense latency")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # torch's own
    if options.quick:
        systems, budgets = [quick["system"]], [quick["budget"]]
    try:
        make = start(options.quick)
    except (HwpruneError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
    planned = plan_rows(options.system or systems, options.budget or budgets)
    return fill(options.out, planned, make)
