"""The command line: a thin shell over the library, with one clear message for every error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hwprune.errors import HwpruneError

app = typer.Typer(
    name="hwprune",
    help="Prune a trained network to a budget on a device, and compile it with TVM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str, typer.Argument(help="package.module:callable, or a .pt2 file", metavar="MODEL")
]
TargetOption = Annotated[
    str, typer.Option("--target", "-t", help="A device; see 'hwprune targets'.")
]
Latency = Annotated[str | None, typer.Option(help="Latency budget: 8ms, 800us or 50%.")]
Macs = Annotated[str | None, typer.Option(help="Multiply-accumulate budget: 300M or 50%.")]
Params = Annotated[str | None, typer.Option(help="Parameter budget: 5M or 50%.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Directory for the results.")]
Input = Annotated[
    list[str] | None, typer.Option("--input", help="Shape of an input, batch first: 1,3,224,224.")
]
Threads = Annotated[int, typer.Option(help="Threads of the compiled network.", min=1)]
Calibrate = Annotated[
    Path | None, typer.Option(help="Directory of unlabelled images to recover accuracy with.")
]
Importance = Annotated[str, typer.Option(help="l1, l2, bn_scale or random.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Args = Annotated[list[str] | None, typer.Option("--arg", help="key=value for the callable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


@app.command("compile")
def compile_command(
    model: Model,
    out: Out,
    target: TargetOption = "host",
    latency: Latency = None,
    macs: Macs = None,
    params: Params = None,
    input_: Input = None,
    threads: Threads = 1,
    calibrate: Calibrate = None,
    importance: Importance = "l2",
    seed: Seed = 0,
    arg: Args = None,
    as_json: AsJson = False,
) -> None:
    """Prune to the budgets, compile, measure dense and pruned side by side, write an artifact."""
    from hwprune.pipeline import compile_pruned
    from hwprune.report import print_report

    with _progress(as_json) as progress:
        given, inputs, images = _inputs(model, arg, input_, calibrate)
        result, _ = compile_pruned(
            given, inputs, out=out, target=target, threads=threads, progress=progress,
            latency=latency, macs=macs, params=params, importance=importance, seed=seed,
            calibrate=images, name=_name(model),
        )  # fmt: skip
    if as_json:
        _print_json(result.report)
    else:
        print_report(result.report, Console())
        Console().print(f"Artifact in {out}; open {out / 'report.html'}")


@app.command("prune")
def prune_command(
    model: Model,
    out: Out,
    target: TargetOption = "host",
    latency: Latency = None,
    macs: Macs = None,
    params: Params = None,
    input_: Input = None,
    threads: Threads = 1,
    calibrate: Calibrate = None,
    importance: Importance = "l2",
    seed: Seed = 0,
    arg: Args = None,
    as_json: AsJson = False,
) -> None:
    """Prune to the budgets and stop at the smaller model: model.pt2 and plan.json."""
    from hwprune.atomic import check_writable, replace_directory
    from hwprune.pipeline import prune, pruned_files
    from hwprune.report import print_report, write_report

    check_writable(out)
    with _progress(as_json) as progress:
        given, inputs, images = _inputs(model, arg, input_, calibrate)
        result = prune(
            given, inputs, target=target, threads=threads, progress=progress, latency=latency,
            macs=macs, params=params, importance=importance, seed=seed, calibrate=images,
            name=_name(model),
        )  # fmt: skip
    with replace_directory(out) as staging:
        for name, data in {**pruned_files(result), **write_report(result.report)}.items():
            (staging / name).write_bytes(data)
    if as_json:
        _print_json(result.report)
    else:
        print_report(result.report, Console())


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

    check_writable(out)
    with _progress(as_json) as progress:
        given, inputs, _ = _inputs(model, arg, input_, None)
        artifact = compile(
            given, inputs, target=target, threads=threads, progress=progress, name=_name(model)
        )
    artifact.save(out)
    _print_json({"out": str(out)}) if as_json else Console().print(f"Artifact in {out}")


@app.command("inspect")
def inspect_command(
    model: Model, input_: Input = None, arg: Args = None, as_json: AsJson = False
) -> None:
    """Show which channels belong together, and which are frozen and why."""
    from hwprune.pipeline import inspect

    given, inputs, _ = _inputs(model, arg, input_, None)
    found = inspect(given, inputs, name=_name(model))
    if as_json:
        _print_json(found)
        return
    table = Table("group", "width", "members", title=f"{found['model']}: prunable groups")
    for group in found["groups"]:
        members = [f"{m['parameter']}[{m['dim']}]" for m in group["members"]]
        table.add_row(group["name"], str(group["width"]), _short(members))
    Console().print(table)
    table = Table("frozen", "width", "reason", "source", title="Frozen")
    for row in found["frozen"]:
        table.add_row(row["name"], str(row["width"]), row["reason"], row["source"])
    Console().print(table)


@app.command("profile")
def profile_command(
    model: Model,
    target: TargetOption = "host",
    input_: Input = None,
    threads: Threads = 1,
    arg: Args = None,
    as_json: AsJson = False,
) -> None:
    """Measure this model's kernels over their widths into the target's latency table; resumes."""
    from hwprune.pipeline import profile

    with _progress(as_json) as progress:
        given, inputs, _ = _inputs(model, arg, input_, None)
        done = profile(
            given, inputs, target=target, threads=threads, progress=progress, name=_name(model)
        )
    if as_json:
        _print_json(vars(done))
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
            _print_json(found)
            return
        table = Table("", name, show_header=True)
        for key, value in found.items():
            if value not in (None, "", ()):
                table.add_row(key, str(value))
        Console().print(table)
        return
    targets = [load_target(n) for n in list_targets()]
    if as_json:
        _print_json([{"name": t.name, "description": t.description} for t in targets])
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
        _print_json(row)
    else:
        Console().print(
            f"{row['model']}: {row['median_us'] / 1000:.2f} ms "
            f"(10-90 %: {row['p10_us'] / 1000:.2f}-{row['p90_us'] / 1000:.2f}), "
            f"{row['threads']} thread(s), measured here"
        )


def main() -> None:
    """Run the command line; errors a user can cause exit with 2, an interruption with 130."""
    try:
        app(standalone_mode=False)
    except HwpruneError as error:
        Console(stderr=True, soft_wrap=True).print("[bold red]error:[/] ", end="", highlight=False)
        print(error, file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted; what was measured is kept", file=sys.stderr)
        sys.exit(130)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except Exception as error:
        show = getattr(error, "show", None)  # an error in how the command was written
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    from hwprune.progress import Silent, rich_progress

    if quiet:
        yield Silent()
    else:
        with rich_progress() as progress:
            yield progress


def _inputs(
    model: str, arg: list[str] | None, shapes: list[str] | None, calibrate: Path | None
) -> tuple[Any, Any, Any]:
    """(model, example inputs, calibration images) from what was written on the command line."""
    from hwprune.model_ref import example_inputs, load_model, parse_arguments

    given = load_model(model, parse_arguments(arg or []))
    inputs = example_inputs(shapes or [], given)
    images = None
    if calibrate is not None:
        from hwprune.recover import load_images

        shape = inputs[0].shape if inputs else _own_shape(given)
        images = load_images(calibrate, tuple(shape), limit=160)
    return given, inputs, images


def _own_shape(path: Path) -> Any:
    from hwprune.capture import capture

    return capture(path).inputs[0].shape


def _name(model: str) -> str:
    return Path(model).stem if model.endswith(".pt2") else model.rpartition(":")[2]


def _short(members: list[str]) -> str:
    return ", ".join(members[:4]) + (f" and {len(members) - 4} more" if len(members) > 4 else "")


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=1, default=str))


if __name__ == "__main__":
    main()
