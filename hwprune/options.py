"""What is written on the command line: the options of the commands, and what they stand for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from hwprune.errors import HwpruneError

Model = Annotated[
    str, typer.Argument(help="package.module:callable, or a .pt2 file", metavar="MODEL")
]
TargetOption = Annotated[
    str, typer.Option("--target", "-t", help="A device; see 'hwprune targets'.")
]
Latency = Annotated[str | None, typer.Option(help="Latency budget: 8ms, 800us or 50%.")]
Macs = Annotated[str | None, typer.Option(help="Multiply-accumulate budget: 300M or 50%.")]
Params = Annotated[str | None, typer.Option(help="Parameter budget: 5M or 50%.")]
Sram = Annotated[str | None, typer.Option(help="Of a microcontroller: SRAM budget, 64KiB or 50%.")]
Flash = Annotated[
    str | None, typer.Option(help="Of a microcontroller: flash budget, 512KiB or 50%.")
]
Threshold = Annotated[
    float | None,
    typer.Option(help="Remove units of less than this share of their group's mean: 0.01."),
]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", help="A plan.json to apply instead of budgets.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="What the device computes in: float32 (usual); float16, bfloat16 or tf32 where it "
        "has them; int8 on CPUs, best with --calibrate; int8 (usual) or float32 on a "
        "microcontroller.",
    ),
]
FloatFallback = Annotated[
    bool,
    typer.Option(
        "--float-fallback",
        help="int8 on a microcontroller: operators without an int8 kernel run in float32, between "
        "a dequantize and a quantize; the report names them.",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Directory for the results.")]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", help="Shape of an input, batch first: 1,3,224,224 or 1,128:int64."),
]
Threads = Annotated[int, typer.Option(help="Threads of the compiled network.", min=1)]
Batch = Annotated[
    int | None, typer.Option(help="Inputs of a run: the first size of every input.", min=1)
]
Calibrate = Annotated[
    Path | None, typer.Option(help="Directory of unlabelled images to recover accuracy with.")
]
Mean = Annotated[
    str, typer.Option(help="Subtracted from those images (scaled to 0..1): one number or one each.")
]
Std = Annotated[str, typer.Option(help="Those images are then divided by this, likewise.")]
Importance = Annotated[
    str,
    typer.Option(
        help="How units are told apart. From weights: l1, l2, linf, bn_scale, lamp, fpgm, random. "
        "With --calibrate: taylor, obd, fisher, snip, wanda, apoz, hrank, reconstruction. auto is "
        "reconstruction with --calibrate, else l2."
    ),
]
Aggregate = Annotated[
    str | None,
    typer.Option(help="Join the members of a group by sum, mean, max or first; else as is usual."),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        help="Compare groups by share, none, sum, mean, max, gaussian, or sensitivity: measured "
        "errors of the outputs, which is usual with --calibrate; without, share is."
    ),
]
Attention = Annotated[
    str,
    typer.Option(help="Units of attentions: heads, head_dim (a channel of every head), or both."),
]
Grouped = Annotated[
    str, typer.Option(help="Units of grouped convolutions: auto, groups, or offsets in each.")
]
GroupNorm = Annotated[
    str, typer.Option(help="Units of group norms: auto, groups, or evenly from each.")
]
Branches = Annotated[
    bool | None,
    typer.Option(
        help="Whether residual branches may be removed whole; usually with --calibrate, which "
        "tells what they are worth.",
        show_default=False,
    ),
]
BranchesToo = Annotated[bool, typer.Option(help="Whether residual branches are among what may go.")]
Steps = Annotated[
    int | None,
    typer.Option(
        help="Steps in which units go, scored again between them (with --calibrate); 1 scores "
        "once and tries no plan out. Usually the more the more goes, and 1 with fewer than 64 "
        "images."
    ),
]
RecoverWith = Annotated[
    str | None,
    typer.Option("--recover", help="package.module:function from a pruned Program to a better."),
]
FromSearch = Annotated[
    Path | None, typer.Option("--from", help="search.json of hwprune search, instead of a MODEL.")
]
PointNumber = Annotated[int | None, typer.Option("--point", help="Which of its points.")]
OptionalModel = Annotated[
    str | None, typer.Argument(help="package.module:callable, or a .pt2 file", metavar="MODEL")
]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Rpc = Annotated[str | None, typer.Option("--rpc", help="TVM's RPC server on the board: HOST:PORT.")]
Tracker = Annotated[str | None, typer.Option(help="TVM's tracker that knows boards: HOST:PORT.")]
Key = Annotated[str | None, typer.Option(help="The boards' key at the tracker, or the server's.")]
Devices = Annotated[
    int | None, typer.Option(help="Boards of that key to use at a time; usually 1.")
]
KernelTimeout = Annotated[
    float | None, typer.Option("--timeout", help="Seconds of one launch of a kernel; usually 10.")
]
Args = Annotated[list[str] | None, typer.Option("--arg", help="key=value for the callable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


def read_inputs(
    model: str,
    arg: list[str] | None,
    shapes: list[str] | None,
    calibrate: Path | None = None,
    mean: str = "0.5",
    std: str = "0.5",
    batch: int | None = None,
) -> tuple[Any, Any, Any]:
    """(model, example inputs, calibration images) from what was written on the command line."""
    from hwprune.model_ref import example_inputs, in_batch, load_model, parse_arguments

    scale = _numbers(mean, "--mean"), _numbers(std, "--std", positive=True)
    given = load_model(model, parse_arguments(arg or []))
    inputs = example_inputs(shapes or [], given)
    if batch is not None:
        inputs = in_batch(_own_inputs(given) if inputs is None else inputs, batch)
    images = None
    if calibrate is not None:
        from hwprune.recover import load_images

        first = inputs[0] if inputs else _own_inputs(given)[0]
        shape = first.shape
        _check_channels(scale, int(shape[1]) if len(shape) > 1 else 1)
        images = load_images(
            calibrate, tuple(shape), limit=160, mean=scale[0], std=scale[1],
            dtype=first.dtype,
        )  # fmt: skip
    return given, inputs, images


def read_recover(reference: str | None) -> Any:
    """The recovery that --recover names, or "auto"."""
    from hwprune.model_ref import load_function

    return "auto" if reference is None else load_function(reference, "--recover")


def _numbers(text: str, option: str, *, positive: bool = False) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(math.isfinite(x) and (x > 0 or not positive) for x in numbers):
        raise HwpruneError(
            f"{text!r} is not a list of {'positive ' if positive else ''}numbers",
            where=option,
            hint="one number, or one per channel: 0.485,0.456,0.406",
        )
    return numbers


def _check_channels(scale: tuple[tuple[float, ...], tuple[float, ...]], channels: int) -> None:
    for option, numbers in zip(("--mean", "--std"), scale, strict=True):
        if len(numbers) not in (1, channels):
            raise HwpruneError(
                f"{len(numbers)} numbers for images of {channels} channels", where=option
            )


def _own_inputs(path: Path) -> Any:
    from hwprune.capture import capture

    return capture(path).inputs


def units(attention: str, grouped: str, group_norm: str, branches: bool | None) -> dict[str, Any]:
    """The options of the units by the names that the library gives them."""
    return {
        "attention": attention,
        "grouped": grouped,
        "group_norm": group_norm,
        "branches": branches,
    }


def model_name(model: str) -> str:
    """What reports call the model of a reference."""
    return Path(model).stem if model.endswith(".pt2") else model.rpartition(":")[2]
