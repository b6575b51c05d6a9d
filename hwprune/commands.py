"""The commands: each checks what it was given, calls the library, and shows what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hwprune.finish_point import finish_point
from hwprune.options import (
    Aggregate,
    Args,
    AsJson,
    Attention,
    Branches,
    Calibrate,
    FromSearch,
    Grouped,
    GroupNorm,
    Importance,
    Input,
    Latency,
    Macs,
    Mean,
    Model,
    Normalize,
    OptionalModel,
    Out,
    Params,
    PlanFile,
    PointNumber,
    RecoverWith,
    Seed,
    Std,
    TargetOption,
    Threads,
    Threshold,
    model_name,
    read_inputs,
    units,
)
from hwprune.shown import print_json, show_artifact, shown_progress

app = typer.Typer(
    name="hwprune",
    help="Prune a trained network to a budget on a device, and compile it with TVM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("compile")
def compile_command(
    out: Out,
    model: OptionalModel = None,
    from_search: FromSearch = None,
    point: PointNumber = None,
    recover: RecoverWith = None,
    target: TargetOption = "host",
    latency: Latency = None,
    macs: Macs = None,
    params: Params = None,
    threshold: Threshold = None,
    plan: PlanFile = None,
    input_: Input = None,
    threads: Threads = 1,
    calibrate: Calibrate = None,
    mean: Mean = "0.5",
    std: Std = "0.5",
    importance: Importance = "auto",
    aggregate: Aggregate = None,
    normalize: Normalize = None,
    attention: Attention = "heads",
    grouped: Grouped = "auto",
    group_norm: GroupNorm = "auto",
    branches: Branches = False,
    seed: Seed = 0,
    arg: Args = None,
    as_json: AsJson = False,
) -> None:
    """Prune to the budgets (or as a plan says), compile, measure, write an artifact.

    With --from and --point: finish a point of a search.
    """
    from hwprune.atomic import check_writable
    from hwprune.pipeline import compile_pruned
    from hwprune.request import read_request

    check_writable(out)
    asked: dict[str, Any] = {
        "target": target, "threads": threads, "latency": latency, "macs": macs, "params": params,
        "plan": plan, "threshold": threshold,
    }  # fmt: skip
    if model is None or from_search is not None or point is not None or recover is not None:
        given_too = [k for k in asked if k not in ("target", "threads") and asked[k] is not None]
        finish_point(model, from_search, point, recover, given_too, out, as_json)
        return
    read_request(**asked, compiles=True)
    with shown_progress(as_json) as progress:
        given, inputs, images = read_inputs(model, arg, input_, calibrate, mean, std)
        result, _ = compile_pruned(
            given, inputs, out=out, progress=progress, importance=importance, aggregate=aggregate,
            normalize=normalize, seed=seed, calibrate=images, name=model_name(model), **asked,
            **units(attention, grouped, group_norm, branches),
        )  # fmt: skip
    show_artifact(result.report, out, as_json)


@app.command("prune")
def prune_command(
    model: Model,
    out: Out,
    target: TargetOption = "host",
    latency: Latency = None,
    macs: Macs = None,
    params: Params = None,
    threshold: Threshold = None,
    plan: PlanFile = None,
    input_: Input = None,
    threads: Threads = 1,
    calibrate: Calibrate = None,
    mean: Mean = "0.5",
    std: Std = "0.5",
    importance: Importance = "auto",
    aggregate: Aggregate = None,
    normalize: Normalize = None,
    attention: Attention = "heads",
    grouped: Grouped = "auto",
    group_norm: GroupNorm = "auto",
    branches: Branches = False,
    seed: Seed = 0,
    arg: Args = None,
    as_json: AsJson = False,
) -> None:
    """Prune to the budgets (or as a plan says), stop at the smaller model: model.pt2, plan.json."""
    from hwprune.atomic import check_writable
    from hwprune.pipeline import prune
    from hwprune.report import print_report
    from hwprune.request import read_request
    from hwprune.result import save_pruned

    check_writable(out)
    asked: dict[str, Any] = {
        "target": target, "threads": threads, "latency": latency, "macs": macs, "params": params,
        "plan": plan, "threshold": threshold,
    }  # fmt: skip
    read_request(**asked)
    with shown_progress(as_json) as progress:
        given, inputs, images = read_inputs(model, arg, input_, calibrate, mean, std)
        result = prune(
            given, inputs, progress=progress, importance=importance, aggregate=aggregate,
            normalize=normalize, seed=seed, calibrate=images, name=model_name(model), **asked,
            **units(attention, grouped, group_norm, branches),
        )  # fmt: skip
    save_pruned(result, out)
    if as_json:
        print_json(result.report)
    else:
        print_report(result.report, Console())


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
    branches: Branches = False,
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


@app.command("lower")
def lower_command(
    model: Model,
    out: Out,
    target: TargetOption = "host",
    input_: Input = None,
    threads: Threads = 1,
    arg: Args = None,
    as_json: AsJson = False,
) -> None:
    """Compile a model as it is."""
    from hwprune.atomic import check_writable
    from hwprune.pipeline import compile
    from hwprune.request import read_target

    check_writable(out)
    read_target(target, threads, compiles=True)
    with shown_progress(as_json) as progress:
        given, inputs, _ = read_inputs(model, arg, input_)
        artifact = compile(
            given, inputs, target=target, threads=threads, progress=progress, name=model_name(model)
        )
    artifact.save(out)
    print_json({"out": str(out)}) if as_json else Console().print(f"Artifact in {out}")


@app.command("inspect")
def inspect_command(
    model: Model,
    attention: Attention = "heads",
    grouped: Grouped = "auto",
    group_norm: GroupNorm = "auto",
    branches: Branches = False,
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
    branches: Branches = False,
    input_: Input = None,
    threads: Threads = 1,
    arg: Args = None,
    as_json: AsJson = False,
) -> None:
    """Measure this model's kernels over their widths into the target's latency table; resumes."""
    from hwprune.pipeline import profile
    from hwprune.request import read_target

    read_target(target, threads, measures=True)
    with shown_progress(as_json) as progress:
        given, inputs, _ = read_inputs(model, arg, input_)
        done = profile(
            given, inputs, target=target, threads=threads, progress=progress,
            name=model_name(model), **units(attention, grouped, group_norm, branches),
        )  # fmt: skip
    if as_json:
        print_json(vars(done))
    else:
        Console().print(
            f"{done.measured} kernels measured, {done.reused} reused, {len(done.failed)} failed, "
            f"{done.seconds:.0f} s; table {done.table}"
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
