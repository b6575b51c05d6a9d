"""The commands: each checks what it was given, calls the library, and shows what came out."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console

from hwprune.finish_point import finish_point
from hwprune.mcu_commands import compile_for_mcu, is_mcu
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
from hwprune.shown import print_json, show_artifact, show_report, shown_progress

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

    With --from and --point: finish a point of a search. For a microcontroller: int8 C, checked on
    an emulated board; without a budget the network is left as it is.
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
    if is_mcu(target):
        pruning = {
            "importance": importance, "aggregate": aggregate, "normalize": normalize,
            **units(attention, grouped, group_norm, branches),
        }  # fmt: skip
        read = read_inputs(model, arg, input_, calibrate, mean, std)
        compile_for_mcu(read, asked, pruning, out, seed, model_name(model), as_json)
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
    show_report(result.report, as_json)


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
