"""The commands: each checks what it was given, calls the library, and shows what came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console

from hwprune.finish_point import finish_point
from hwprune.int8_commands import compile_in_int8, is_int8
from hwprune.mcu_commands import compile_for_mcu, kernels_of, refuse_memory
from hwprune.options import (
    Aggregate,
    Args,
    AsJson,
    Attention,
    Batch,
    Branches,
    Calibrate,
    Devices,
    Dtype,
    Flash,
    FloatFallback,
    FromSearch,
    Grouped,
    GroupNorm,
    Importance,
    Input,
    KernelTimeout,
    Key,
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
    Rpc,
    Seed,
    Sram,
    Std,
    Steps,
    TargetOption,
    Threads,
    Threshold,
    Tracker,
    model_name,
    read_inputs,
    units,
)
from hwprune.shown import print_json, show_artifact, show_report, shown_progress
from hwprune.target import FLOAT32, kind_of

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
    sram: Sram = None,
    flash: Flash = None,
    macs: Macs = None,
    params: Params = None,
    threshold: Threshold = None,
    plan: PlanFile = None,
    input_: Input = None,
    threads: Threads = 1,
    batch: Batch = None,
    calibrate: Calibrate = None,
    mean: Mean = "0.5",
    std: Std = "0.5",
    importance: Importance = "auto",
    aggregate: Aggregate = None,
    normalize: Normalize = None,
    attention: Attention = "heads",
    grouped: Grouped = "auto",
    group_norm: GroupNorm = "auto",
    branches: Branches = None,
    steps: Steps = None,
    rpc: Rpc = None,
    tracker: Tracker = None,
    key: Key = None,
    timeout: KernelTimeout = None,
    devices: Devices = None,
    dtype: Dtype = None,
    float_fallback: FloatFallback = False,
    seed: Seed = 0,
    arg: Args = None,
    as_json: AsJson = False,
) -> None:
    """Prune to the budgets (or as a plan says), compile, measure, write an artifact.

    With --from and --point: finish a point of a search. With --rpc or --tracker: on that board.
    For a microcontroller: C in int8 (or --dtype float32), checked on an emulated board, in its
    --sram and --flash. With --dtype int8 on a CPU: quantized, bit for bit the integer reference.
    For those and for a GPU: without a budget the network is left as it is.
    """
    from hwprune.atomic import check_writable
    from hwprune.compiling import compile_pruned
    from hwprune.remote.address import read_boards
    from hwprune.request import read_request

    check_writable(out)
    kernels = kernels_of(dtype, target, float_fallback)
    asked: dict[str, Any] = {
        "target": target, "threads": threads, "latency": latency, "macs": macs, "params": params,
        "plan": plan, "threshold": threshold,
        "boards": read_boards(rpc, tracker, key, devices, timeout), "dtype": dtype or FLOAT32,
    }  # fmt: skip
    memory = {"sram": sram, "flash": flash}
    if model is None or from_search is not None or point is not None or recover is not None:
        said = _said(asked | memory, dtype)
        finish_point(model, from_search, point, recover, said, asked["boards"], out, as_json)
        return
    pruning = {
        "importance": importance, "aggregate": aggregate, "normalize": normalize,
        **units(attention, grouped, group_norm, branches), "steps": steps,
    }  # fmt: skip
    kind = kind_of(target)
    if kind == "mcu":
        read = read_inputs(model, arg, input_, calibrate, mean, std)
        name = model_name(model)
        compile_for_mcu(read, asked | memory, pruning, out, seed, name, as_json, kernels)
        return
    refuse_memory(memory)
    if is_int8(dtype, target):
        read = read_inputs(model, arg, input_, calibrate, mean, std, batch)
        compile_in_int8(read, asked, pruning, out, seed, model_name(model), as_json)
        return
    if kind == "cuda" and all(b is None for b in (latency, macs, params, threshold, plan)):
        lower_command(
            model, out, target, input_, threads, batch, dtype, calibrate, mean, std, arg, as_json
        )
        return
    read_request(**asked, compiles=True)
    with shown_progress(as_json) as progress:
        given, inputs, images = read_inputs(model, arg, input_, calibrate, mean, std, batch)
        result, _ = compile_pruned(
            given, inputs, out=out, progress=progress, seed=seed, calibrate=images,
            name=model_name(model), **asked, **pruning,
        )  # fmt: skip
    show_artifact(result.report, out, as_json)


def _said(asked: Mapping[str, Any], dtype: str | None) -> list[str]:
    """The options that were given: not None, nor the default."""
    defaults = {"target": "host", "threads": 1, "dtype": FLOAT32 if dtype is None else ""}
    given = {name: value for name, value in asked.items() if name != "boards"}
    return [name for name, value in given.items() if value not in (None, defaults.get(name))]


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
    batch: Batch = None,
    dtype: Dtype = None,
    calibrate: Calibrate = None,
    mean: Mean = "0.5",
    std: Std = "0.5",
    importance: Importance = "auto",
    aggregate: Aggregate = None,
    normalize: Normalize = None,
    attention: Attention = "heads",
    grouped: Grouped = "auto",
    group_norm: GroupNorm = "auto",
    branches: Branches = None,
    steps: Steps = None,
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
        "plan": plan, "threshold": threshold, "dtype": dtype or FLOAT32,
    }  # fmt: skip
    read_request(**asked)
    with shown_progress(as_json) as progress:
        given, inputs, images = read_inputs(model, arg, input_, calibrate, mean, std, batch)
        result = prune(
            given, inputs, progress=progress, importance=importance, aggregate=aggregate,
            normalize=normalize, seed=seed, calibrate=images, name=model_name(model), **asked,
            **units(attention, grouped, group_norm, branches), steps=steps,
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
    batch: Batch = None,
    dtype: Dtype = None,
    calibrate: Calibrate = None,
    mean: Mean = "0.5",
    std: Std = "0.5",
    arg: Args = None,
    as_json: AsJson = False,
) -> None:
    """Compile a model as it is. In float16 --calibrate shows what would leave its range."""
    from hwprune.atomic import check_writable
    from hwprune.compiling import compile
    from hwprune.request import read_target

    check_writable(out)
    read_target(target, threads, compiles=True, dtype=dtype or FLOAT32)
    with shown_progress(as_json) as progress:
        given, inputs, images = read_inputs(model, arg, input_, calibrate, mean, std, batch)
        artifact = compile(
            given, inputs, target=target, threads=threads, dtype=dtype or FLOAT32,
            calibrate=images, progress=progress, name=model_name(model),
        )  # fmt: skip
    artifact.save(out)
    print_json({"out": str(out)}) if as_json else Console().print(f"Artifact in {out}")
