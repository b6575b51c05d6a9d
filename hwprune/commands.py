"""The commands: each checks what it was given, calls the library, and shows what came out."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console

from hwprune.finish_point import finish_point
from hwprune.mcu_commands import INT8_ONLY, MCU_ONLY, compile_for_mcu, is_mcu, refuse_memory
from hwprune.mcu_float_commands import compile_float_for_mcu, is_float
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
    TargetOption,
    Threads,
    Threshold,
    Tracker,
    model_name,
    read_inputs,
    units,
)
from hwprune.shown import print_json, show_artifact, show_report, shown_progress
from hwprune.target import FLOAT32

app = typer.Typer(
    name="hwprune",
    help="Prune a trained network to a budget on a device, and compile it with TVM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def is_gpu(target: str) -> bool:
    """Whether a target is a GPU. Raises TargetError for an unknown one."""
    from hwprune.target import load_target

    return load_target(target).kind == "cuda"


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
    branches: Branches = False,
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
    """Prune to the budgets (or as a plan says), compile, measure, write an artifact.

    With --from and --point: finish a point of a search. With --rpc or --tracker: on that board.
    For a microcontroller: C in int8 (or --dtype float32), checked on an emulated board, in its
    --sram and --flash. For that and for a GPU: without a budget the network is left as it is.
    """
    from hwprune.atomic import check_writable
    from hwprune.pipeline import compile_pruned
    from hwprune.remote.address import read_boards
    from hwprune.request import read_request

    check_writable(out)
    floats = is_float(dtype, target)
    asked: dict[str, Any] = {
        "target": target, "threads": threads, "latency": latency, "macs": macs, "params": params,
        "plan": plan, "threshold": threshold,
        "boards": read_boards(rpc, tracker, key, devices, timeout), "dtype": dtype or FLOAT32,
    }  # fmt: skip
    memory = {"sram": sram, "flash": flash}
    if model is None or from_search is not None or point is not None or recover is not None:
        boards = asked.pop("boards")
        unsaid = {"target": "host", "threads": 1, "dtype": FLOAT32 if dtype is None else ""}
        given_too = [k for k, v in (asked | memory).items() if v not in (None, unsaid.get(k))]
        finish_point(model, from_search, point, recover, given_too, boards, out, as_json)
        return
    if is_mcu(target):
        pruning = {
            "importance": importance, "aggregate": aggregate, "normalize": normalize,
            **units(attention, grouped, group_norm, branches),
        }  # fmt: skip
        read = read_inputs(model, arg, input_, calibrate, mean, std)
        if floats:
            refuse_memory(memory, INT8_ONLY)
            compile_float_for_mcu(read, asked, pruning, out, seed, model_name(model), as_json)
            return
        compile_for_mcu(read, asked | memory, pruning, out, seed, model_name(model), as_json)
        return
    refuse_memory(memory, MCU_ONLY)
    budgets = (latency, macs, params, threshold, plan)
    if is_gpu(target) and all(budget is None for budget in budgets):
        lower_command(
            model, out, target, input_, threads, batch, dtype, calibrate, mean, std, arg, as_json
        )
        return
    read_request(**asked, compiles=True)
    with shown_progress(as_json) as progress:
        given, inputs, images = read_inputs(model, arg, input_, calibrate, mean, std, batch)
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
        "plan": plan, "threshold": threshold, "dtype": dtype or FLOAT32,
    }  # fmt: skip
    read_request(**asked)
    with shown_progress(as_json) as progress:
        given, inputs, images = read_inputs(model, arg, input_, calibrate, mean, std, batch)
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
    from hwprune.pipeline import compile
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
