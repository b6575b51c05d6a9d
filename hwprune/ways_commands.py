"""The commands for other ways of pruning than one shot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hwprune.commands import app
from hwprune.options import (
    Args,
    AsJson,
    Calibrate,
    Devices,
    Dtype,
    Importance,
    Input,
    KernelTimeout,
    Key,
    Latency,
    Macs,
    Mean,
    Model,
    Out,
    Params,
    RecoverWith,
    Rpc,
    Seed,
    Std,
    TargetOption,
    Threads,
    Tracker,
    model_name,
    read_inputs,
    read_recover,
)
from hwprune.shown import print_json, show_report, shown_progress
from hwprune.target import FLOAT32

if TYPE_CHECKING:
    from hwprune.front import Front, Point


@app.command("mask")
def mask_command(
    model: Model,
    out: Out,
    amount: Annotated[float | None, typer.Option(help="Share of all weights: 0.5.")] = None,
    pattern: Annotated[str | None, typer.Option(help="Or n of every m stay: 2:4.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Also time the network.")] = False,
    target: TargetOption = "host",
    input_: Input = None,
    threads: Threads = 1,
    arg: Args = None,
    as_json: AsJson = False,
) -> None:
    """Set single weights to zero (layers keep their shapes) and say what that saves."""
    from hwprune.atomic import check_writable, replace_directory
    from hwprune.errors import ModelError
    from hwprune.given import as_program
    from hwprune.result import export_bytes
    from hwprune.ways.masks import mask
    from hwprune.ways.sparse_file import SPARSE, sparse_bytes

    check_writable(out)
    with shown_progress(as_json) as progress, progress.stage("mask"):
        given, inputs, _ = read_inputs(model, arg, input_)
        if inputs is None:
            raise ModelError("masks need a module", where=model, hint="package.module:callable")
        done = mask(
            given, amount, pattern=pattern, inputs=inputs if measure else None,
            target=target, threads=threads,
        )  # fmt: skip
        program = as_program(given, inputs, "")
    with replace_directory(out) as staging:
        (staging / "model.pt2").write_bytes(export_bytes(program))
        (staging / SPARSE).write_bytes(sparse_bytes(given.state_dict()))
        (staging / "mask.json").write_text(json.dumps(done.report, indent=1) + "\n")
    if as_json:
        print_json(done.report)
        return
    size = done.report["bytes"]
    Console().print(
        f"{100 * done.report['share']:.1f} % of {done.report['weights']} weights are zero: "
        f"{size['dense'] / 1e6:.2f} MB become {size['bitmap_deflated'] / 1e6:.2f} MB on disk "
        f"(deflated without a mask {size['dense_deflated'] / 1e6:.2f} MB)"
    )
    if "latency" in done.report:
        Console().print(f"Time with the mask: {done.report['latency']['ratio']:.2f} of without")
    Console().print(done.report["note"])


@app.command("iterate")
def iterate_command(
    model: Model,
    out: Out,
    steps: Annotated[int, typer.Option(help="Into how many prunings it is divided.", min=1)],
    schedule: Annotated[str, typer.Option(help="linear, exponential or cubic.")] = "cubic",
    recover: RecoverWith = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Directory that keeps every step; goes on there.")
    ] = None,
    target: TargetOption = "host",
    latency: Latency = None,
    macs: Macs = None,
    params: Params = None,
    input_: Input = None,
    threads: Threads = 1,
    calibrate: Calibrate = None,
    mean: Mean = "0.5",
    std: Std = "0.5",
    importance: Importance = "auto",
    seed: Seed = 0,
    arg: Args = None,
    as_json: AsJson = False,
) -> None:
    """Prune in steps with a recovery after each: model.pt2, plan.json as of one pruning."""
    from hwprune.atomic import check_writable
    from hwprune.request import read_request
    from hwprune.result import save_pruned
    from hwprune.ways.iterative import prune_iteratively
    from hwprune.ways.schedule import check_schedule

    check_writable(out)
    check_schedule(steps, schedule)
    asked: dict[str, Any] = {
        "target": target, "threads": threads, "latency": latency, "macs": macs, "params": params,
    }  # fmt: skip
    read_request(**asked)
    how = read_recover(recover)
    with shown_progress(as_json) as progress:
        given, inputs, images = read_inputs(model, arg, input_, calibrate, mean, std)
        result = prune_iteratively(
            given, inputs, steps=steps, schedule=schedule, recover=how, checkpoint=checkpoint,
            calibrate=images, importance=importance, seed=seed, progress=progress,
            name=model_name(model), **asked,
        )  # fmt: skip
    save_pruned(result, out)
    show_report(result.report, as_json)


@app.command("search")
def search_command(
    model: Model,
    out: Out,
    target: TargetOption = "host",
    budget: Annotated[
        list[str] | None, typer.Option(help="Share of the dense latency: 50%; repeat it.")
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option(help="package.module:function from a module to its accuracy.")
    ] = None,
    recover: RecoverWith = None,
    input_: Input = None,
    threads: Threads = 1,
    calibrate: Calibrate = None,
    mean: Mean = "0.5",
    std: Std = "0.5",
    importance: Importance = "auto",
    rpc: Rpc = None,
    tracker: Tracker = None,
    key: Key = None,
    timeout: KernelTimeout = None,
    devices: Devices = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    arg: Args = None,
    as_json: AsJson = False,
) -> None:
    """Prune to several latencies, recover, judge and time all; resumes. Then: compile --from.

    For a device that is not here latencies are predicted, or measured with --rpc or --tracker.
    """
    from hwprune.atomic import check_writable
    from hwprune.front_search import BUDGETS, search
    from hwprune.model_ref import load_function
    from hwprune.remote.address import read_boards

    check_writable(out)
    boards = read_boards(rpc, tracker, key, devices, timeout)
    judge = load_function(evaluate, "--evaluate") if evaluate is not None else None
    how = read_recover(recover)
    with shown_progress(as_json) as progress:
        given, inputs, images = read_inputs(model, arg, input_, calibrate, mean, std)
        front = search(
            given, inputs, out=out, budgets=budget or BUDGETS, evaluate=judge, recover=how,
            calibrate=images, target=target, threads=threads, importance=importance, seed=seed,
            boards=boards, dtype=dtype or FLOAT32, progress=progress, name=model_name(model),
        )  # fmt: skip
    if as_json:
        print_json(json.loads(Path(front.path).read_text()))
        return
    _show_front(front)


def _show_front(front: Front) -> None:
    """The points, where their latencies come from, and what to do next."""
    from hwprune.report.summary import HOW

    columns = ("point", "budget", front.measure, "latency ms", "of dense", "params", "")
    how = f"latency {HOW[front.source]}"
    table = Table(*columns, title=escape(f"{front.model} on {front.target}; {how}"))
    for p in front.points:
        table.add_row(
            str(p.point), p.budget, f"{p.quality:.4f}", _latency(p),
            f"{p.ratio:.3f}", str(p.params), "" if p.on_front else "beaten",
        )  # fmt: skip
    Console().print(table)
    origin = f"latency {HOW[front.source]}: {front.origin}"
    for line in (*([origin] if front.origin else []), *front.warnings, *front.missed):
        Console().print(escape(line))
    Console().print(f"hwprune compile --from {front.path} --point K --out DIR finishes one")


def _latency(point: Point) -> str:
    """Milliseconds, with the interval where they are predicted."""
    found = f"{point.latency_us / 1000:.3f}"
    if point.latency_low_us is None or point.latency_high_us is None:
        return found
    return f"{found} ({point.latency_low_us / 1000:.3f} to {point.latency_high_us / 1000:.3f})"
