"""The commands that look: at a model, at what narrowing costs, kernels, devices, artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hwprune.commands import app
from hwprune.options import (
    Aggregate,
    Args,
    AsJson,
    Attention,
    Batch,
    BranchesToo,
    Calibrate,
    Devices,
    Dtype,
    Grouped,
    GroupNorm,
    Importance,
    Input,
    KernelTimeout,
    Key,
    Mean,
    Model,
    Out,
    Rpc,
    Seed,
    Std,
    TargetOption,
    Threads,
    Tracker,
    model_name,
    read_inputs,
    units,
)
from hwprune.shown import print_json, shown_progress
from hwprune.target import FLOAT32, kind_of


@app.command("sensitivity")
def sensitivity_command(
    model: Model,
    out: Out,
    calibrate: Calibrate = None,
    mean: Mean = "0.5",
    std: Std = "0.5",
    images: Annotated[int, typer.Option(help="How many of the images are run.", min=1)] = 16,
    importance: Importance = "auto",
    aggregate: Aggregate = None,
    attention: Attention = "heads",
    grouped: Grouped = "auto",
    group_norm: GroupNorm = "auto",
    branches: BranchesToo = True,
    input_: Input = None,
    seed: Seed = 0,
    arg: Args = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much the outputs suffer when one group alone gets narrower; resumes."""
    from hwprune.dry_run import find_sensitivity
    from hwprune.importance import Importance as Asked
    from hwprune.report.sensitivity import print_sensitivity

    Asked(importance, aggregate).check(calibrate is not None)
    with shown_progress(as_json) as progress:
        given, inputs, found = read_inputs(model, arg, input_, calibrate, mean, std)
        curves = find_sensitivity(
            given, inputs, calibrate=found, importance=importance, aggregate=aggregate,
            images=images, out=out, seed=seed, progress=progress, name=model_name(model),
            **units(attention, grouped, group_norm, branches),
        )  # fmt: skip
    if as_json:
        print_json(curves.to_json())
    else:
        print_sensitivity(curves, Console())
        Console().print(f"Curves and their plot in {out}")


@app.command("inspect")
def inspect_command(
    model: Model,
    attention: Attention = "heads",
    grouped: Grouped = "auto",
    group_norm: GroupNorm = "auto",
    branches: BranchesToo = True,
    input_: Input = None,
    arg: Args = None,
    as_json: AsJson = False,
) -> None:
    """Show which channels belong together, and which are frozen and why."""
    from hwprune.pipeline import inspect
    from hwprune.report import print_groups

    given, inputs, _ = read_inputs(model, arg, input_)
    forms = units(attention, grouped, group_norm, branches)
    found = inspect(given, inputs, name=model_name(model), **forms)
    if as_json:
        print_json(found)
        return
    print_groups(found, Console())


@app.command("profile")
def profile_command(
    model: Model,
    target: TargetOption = "host",
    attention: Attention = "heads",
    grouped: Grouped = "auto",
    group_norm: GroupNorm = "auto",
    branches: BranchesToo = True,
    input_: Input = None,
    threads: Threads = 1,
    batch: Batch = None,
    rpc: Rpc = None,
    tracker: Tracker = None,
    key: Key = None,
    devices: Devices = None,
    timeout: KernelTimeout = None,
    dtype: Dtype = None,
    arg: Args = None,
    as_json: AsJson = False,
) -> None:
    """Measure this model's kernels over their widths into the target's latency table; resumes.

    On this machine, on boards that run TVM's RPC server (docs/boards.md), or on the emulated board
    of a microcontroller.
    """
    from hwprune.profiling import profile
    from hwprune.remote.address import read_boards
    from hwprune.request import read_target

    boards = read_boards(rpc, tracker, key, devices, timeout)
    if kind_of(target) != "mcu":
        read_target(target, threads, measures=boards is None, dtype=dtype or FLOAT32)
    with shown_progress(as_json) as progress:
        given, inputs, _ = read_inputs(model, arg, input_, batch=batch)
        done = profile(
            given, inputs, target=target, threads=threads, progress=progress, boards=boards,
            dtype=dtype or FLOAT32, name=model_name(model),
            **units(attention, grouped, group_norm, branches),
        )  # fmt: skip
    if as_json:
        print_json(vars(done))
    else:
        for warning in done.warnings:
            Console(stderr=True).print(f"[yellow]warning:[/] {warning}")
        for line in done.failed:
            Console(stderr=True).print("[yellow]failed:[/]", escape(line), soft_wrap=True)
        if done.model:
            Console().print(f"{done.predicted} kernels predicted, not measured: {done.model}")
        Console().print(
            f"{done.measured} kernels measured, {done.reused} reused, {len(done.failed)} failed, "
            f"{done.seconds:.0f} s; table {done.table}" + (f"; {done.board}" if done.board else "")
        )


@app.command("targets")
def targets_command(
    name: Annotated[str | None, typer.Argument(help="Show this target.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the targets, or show one."""
    from dataclasses import asdict

    from hwprune.target import list_targets, load_target

    if name is not None:
        found = asdict(load_target(name))
        if as_json:
            print_json(found)
            return
        table = Table("", name, show_header=True)
        for key, value in found.items():
            if value not in (None, "", ()):
                table.add_row(key, str(value))
        Console().print(table)
        return
    targets = [load_target(n) for n in list_targets()]
    if as_json:
        print_json([{"name": t.name, "description": t.description} for t in targets])
        return
    table = Table("target", "kind", "cores", "description")
    for target in targets:
        table.add_row(target.name, target.kind, str(target.cores), target.description)
    Console().print(table)


@app.command("run")
def run_command(
    directory: Annotated[Path, typer.Argument(help="An artifact directory.", metavar="DIR")],
    repeats: Annotated[int, typer.Option(help="Inferences to time.", min=1)] = 50,
    as_json: AsJson = False,
) -> None:
    """Load an artifact, run it and time it (no torch needed)."""
    import numpy as np

    from hwprune.deploy import load

    artifact = load(directory)
    times = artifact.latencies_us(repeats)
    row: dict[str, Any] = {
        "model": artifact.manifest.model,
        "target": artifact.manifest.target,
        "threads": artifact.manifest.threads,
        "median_us": float(np.median(times)),
        "p10_us": float(np.percentile(times, 10)),
        "p90_us": float(np.percentile(times, 90)),
        "source": "device",
    }
    if as_json:
        print_json(row)
    else:
        Console().print(
            f"{row['model']}: {row['median_us'] / 1000:.2f} ms "
            f"(10-90 %: {row['p10_us'] / 1000:.2f}-{row['p90_us'] / 1000:.2f}), "
            f"{row['threads']} thread(s), measured here"
        )
