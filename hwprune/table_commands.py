"""`hwprune tables`: latency tables as files, shown, checked, joined, compared, learnt from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hwprune.commands import app
from hwprune.options import AsJson, TargetOption
from hwprune.shown import print_json

tables = typer.Typer(
    help="Latency tables as files: show, check, compare, merge, export, import, calibrate.",
    no_args_is_help=True,
)
app.add_typer(tables, name="tables")

TableFile = Annotated[Path, typer.Argument(help="A table as text.", metavar="FILE")]
TableFiles = Annotated[list[Path], typer.Argument(help="Tables as text.", metavar="FILE...")]
OutFile = Annotated[Path, typer.Option("--out", "-o", help="The file to write.", metavar="FILE")]
Every = Annotated[
    bool, typer.Option("--every", help="Also rows of other toolchains and schedules.")
]
Models = Annotated[bool, typer.Option("--models", help="Also rows that were predicted.")]


@tables.command("show")
def show_command(
    file: Annotated[Path | None, typer.Argument(help="A table as text.", metavar="[FILE]")] = None,
    target: TargetOption = "host",
    every: Every = False,
    models: Models = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write latency against width there, as SVG.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a file holds, or what this machine's store has of a target."""
    from hwprune.tables import read_document
    from hwprune.tables.store import export

    found = read_document(file) if file is not None else export(target, every=every, models=models)
    if plot is not None:
        _plot(found, plot)
    rows = [_summary(found, origin) for origin in found.origins]
    if as_json:
        print_json({"target": found.target, "origins": rows})
        return
    names = ("rows", "device", "emulator", "model", "failed", "latest")
    table = Table("device", "toolchain", "schedules", *names, title=f"Table of {found.target}")
    for row in rows:
        numbers = (str(row[name]) for name in names)
        table.add_row(row["fingerprint"], row["toolchain"], row["schedule"], *numbers)
    Console().print(table)


@tables.command("check")
def check_command(files: TableFiles, as_json: AsJson = False) -> None:
    """Validate files: every line, its checksum, its place, and the whole."""
    from hwprune.tables import read_document

    counts = {str(file): len(read_document(file).entries) for file in files}
    if as_json:
        print_json(counts)
        return
    for name, count in counts.items():
        Console().print(f"{name}: {count} rows, nothing wrong", soft_wrap=True)


@tables.command("merge")
def merge_command(files: TableFiles, out: OutFile, as_json: AsJson = False) -> None:
    """Join the files of one target; each row keeps the device, toolchain and schedules it is of."""
    from hwprune.tables import merge, read_document, write_document

    found = merge([read_document(file) for file in files])
    write_document(found, out)
    _say(as_json, f"{len(found.entries)} rows in {out}", out=str(out), rows=len(found.entries))


@tables.command("diff")
def diff_command(
    before: TableFile,
    after: TableFile,
    tolerance: Annotated[
        float, typer.Option(help="Medians that differ by at most this share are alike.", min=0.0)
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Say which kernels one file lacks, and which take another time. Status 1 if any."""
    from hwprune.tables import diff, read_document

    changes = diff(read_document(before), read_document(after), tolerance)
    if as_json:
        print_json([_change(change) for change in changes])
    else:
        for change in changes:
            shown = _change(change)
            Console().print(f"{shown['change']:>10}  {shown['kernel']}", soft_wrap=True)
        Console().print(f"{len(changes)} differences")
    if changes:
        raise typer.Exit(1)


@tables.command("export")
def export_command(
    out: OutFile,
    target: TargetOption = "host",
    every: Every = False,
    models: Models = False,
    as_json: AsJson = False,
) -> None:
    """Write the rows that this machine's store has of a target to a file."""
    from hwprune.tables import write_document
    from hwprune.tables.store import export

    found = export(target, every=every, models=models)
    write_document(found, out)
    _say(as_json, f"{len(found.entries)} rows in {out}", out=str(out), rows=len(found.entries))


@tables.command("import")
def import_command(files: TableFiles, as_json: AsJson = False) -> None:
    """Put the rows of files into this machine's store, where compile and profile find them."""
    from hwprune.tables import read_document
    from hwprune.tables.store import bring_in

    documents = [read_document(file) for file in files]  # all are sound before any is taken
    counts = [bring_in(document) for document in documents]
    put, kept = (sum(count[i] for count in counts) for i in (0, 1))
    _say(as_json, f"{put} rows imported, {kept} were there", imported=put, kept=kept)


@tables.command("calibrate")
def calibrate_command(file: TableFile, out: OutFile, as_json: AsJson = False) -> None:
    """Make a target's model.json from a table that a board has measured (docs/prediction.md)."""
    from hwprune.predict.own import calibrate
    from hwprune.tables import read_document
    from hwprune.target import load_target

    document = read_document(file)
    found = calibrate(document, load_target(document.target))
    found.save(out)
    low, high = found.model.interval
    text = f"{found.describe()}; four of five kernels within {low:+.2f} and {high:+.2f} (logarithm)"
    _say(as_json, f"{text}, in {out}", out=str(out), rows=found.rows, interval=[low, high])


def _summary(found: Any, origin: Any) -> dict[str, Any]:
    rows = [entry.row for entry in found.entries if entry.origin == origin]
    sources = Counter(row.source for row in rows if not row.failure)
    return {
        "fingerprint": origin.fingerprint,
        "toolchain": origin.toolchain,
        "schedule": origin.schedule,
        "rows": len(rows),
        **{source: sources[source] for source in ("device", "emulator", "model")},
        "failed": sum(bool(row.failure) for row in rows),
        "latest": max(row.date for row in rows),
    }


def _change(change: Any) -> dict[str, Any]:
    from hwprune.table import describe

    row = change.after or change.before
    what = "added" if change.before is None else "removed" if change.after is None else "source"
    if change.ratio is not None and change.ratio != 1.0:
        what = f"{100 * (change.ratio - 1):+.1f} %"
    return {"change": what, "kernel": describe(row.workload), "threads": row.threads}


def _plot(found: Any, path: Path) -> None:
    from hwprune.atomic import write_text
    from hwprune.errors import TableError
    from hwprune.report.staircase import draw_staircases
    from hwprune.tables.staircase import FEWEST, staircases

    series = staircases(found)
    if not series:
        raise TableError(
            f"has no kernel in {FEWEST} widths: there is nothing to plot", where=found.target
        )
    write_text(path, draw_staircases(series))


def _say(as_json: bool, text: str, **facts: Any) -> None:
    print_json(facts) if as_json else Console().print(text, soft_wrap=True)
