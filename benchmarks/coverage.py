"""Which architectures hwprune prunes: every family of torchvision and timm, step by step.

    python -m benchmarks.coverage [--quick] [--out FILE] [--keep] [--all] [--library NAME]

One child process a model, one thread: capture, coupling, a random plan with half the MACs, the
certificate on values and gradients, saving and loading, a train step. Random weights, the smallest
sensible input, the smallest model of each family (`--all`: every model). Rows written to
benchmarks/results/coverage.json go into docs/coverage.md too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import common
from benchmarks.child import Outcome, call, preloaded
from benchmarks.coverage_models import Family, families
from benchmarks.coverage_report import write_page

RESULTS = Path(__file__).resolve().parent / "results" / "coverage.json"
QUICK = (("torchvision", "squeezenet"), ("timm", "mobilevit"))
STEPS = ("build", "capture", "couple", "plan", "rewrite", "verify", "save", "train")
PACKAGES = ("torchvision", "timm", "transformers", "scipy")
FORKED = preloaded("benchmarks.coverage_preload")
MEMORY_MIB = 8 * 1024
SETUP_S = 300.0
Row = dict[str, Any]


def measure(family: Family, model: str, timeout_s: float) -> Row:
    """The row of one model."""
    outcome = call(
        "benchmarks.coverage_steps:steps",
        {"library": family.library, "model": model},
        threads=1,
        timeout_s=timeout_s,
        setup_s=SETUP_S,
        context=FORKED,
    )
    row: Row = {"library": family.library, "family": family.name, "model": model}
    return row | _facts(outcome) | {"peak_rss_mib": outcome.peak_rss_mib}


def _facts(outcome: Outcome) -> Row:
    """Status, reason, and what every finished step found."""
    reached = [step for step, _ in outcome.values]
    facts: Row = {"status": "pass", "reason": "", "prunable_share": 0.0, "max_rel_error": None}
    for _, found in outcome.values:
        facts |= found
    if outcome.reason is not None:
        step = next(s for s in (*STEPS, "end") if s not in reached)
        return facts | {"status": "fail", "reason": f"{step}: {outcome.reason}"}
    if "declined" in reached:
        return facts | {"status": "declined"}
    if not facts["groups"]:
        return facts | {"status": "declined", "reason": _first_reason(facts["frozen"])}
    if outcome.peak_rss_mib is not None and outcome.peak_rss_mib > MEMORY_MIB:
        return facts | {"status": "fail", "reason": f"takes {outcome.peak_rss_mib:.0f} MiB"}
    return facts


def _first_reason(frozen: dict[str, int]) -> str:
    """What freezes most channels, how many."""
    reason, channels = next(iter(frozen.items()), ("no parameter has channels to remove", 0))
    return f"{reason} ({channels} channels)"


def chosen(family: Family, everything: bool) -> Iterator[str]:
    """The models of a family to run: all, or the one with the fewest parameters."""
    if everything or len(family.models) == 1:
        yield from family.models
        return
    arguments = {"library": family.library, "models": family.models}
    reference = "benchmarks.coverage_models:smallest"
    found = call(reference, arguments, threads=1, timeout_s=SETUP_S, context=FORKED)
    yield str(found.value) if found.values else family.models[0]


def run(
    listed: Sequence[Family], rows: list[Row], everything: bool, timeout_s: float
) -> Iterator[list[Row]]:
    """All rows so far, after each model; those of `rows` are not measured again."""
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=common.console) as bar:
        task = bar.add_task("", total=len(listed))
        for family in listed:
            done = {r["model"] for r in rows if _family(r) == (family.library, family.name)}
            if everything or not done:
                for model in chosen(family, everything):
                    bar.update(task, description=f"{family.library} {model}")
                    if model not in done:
                        rows.append(measure(family, model, timeout_s))
                        yield rows
            bar.advance(task)


def _family(row: Row) -> tuple[str, str]:
    return row["library"], row["family"]


def show(rows: Sequence[Row]) -> None:
    """Print how many pass, are declined and fail, by library; then each that does not pass."""
    libraries = dict.fromkeys(r["library"] for r in rows)
    statuses = ("pass", "declined", "fail")
    counted = [
        [lib, *(str(sum(_is(r, lib, s) for r in rows)) for s in statuses)] for lib in libraries
    ]
    common.table("Coverage", ("library", *statuses), counted)
    for row in rows:
        if row["status"] != "pass":
            where = f"{row['library']} {row['model']}"
            text = f"{where}: {row['status']}: {row['reason']}"
            common.console.print(text, style="yellow", markup=False)


def _is(row: Row, library: str, status: str) -> bool:
    return bool(row["library"] == library and row["status"] == status)


def main() -> None:
    parser = common.parser(__doc__, " and ".join(" ".join(names) for names in QUICK) + " only")
    parser.add_argument("--keep", action="store_true", help="go on from the rows in FILE")
    parser.add_argument("--all", action="store_true", help="every registered model")
    parser.add_argument("--library", action="append", help="only this library (repeatable)")
    parser.add_argument("--family", action="append", help="only this family (repeatable)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for each model, 120")
    options = parser.parse_args()
    every = families()
    known = {"families": dict(Counter(f.library for f in every))}
    listed = [
        f
        for f in every
        if (not options.quick or (f.library, f.name) in QUICK)
        and (options.library is None or f.library in options.library)
        and (options.family is None or f.name in options.family)
    ]
    rows: list[Row] = common.rows_of(options.out) if options.keep else []
    for so_far in run(listed, rows, options.all, options.timeout):
        if options.out is not None:
            common.write(options.out, common.envelope(so_far, PACKAGES) | known)
    show(rows)
    common.finish(options.out, rows, PACKAGES, known)
    if options.out is not None and options.out.resolve() == RESULTS:
        write_page(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
