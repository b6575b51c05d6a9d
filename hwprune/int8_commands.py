"""`hwprune compile --dtype int8` for CPUs: the library's call, what came out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hwprune.dtype import INT8
from hwprune.shown import print_json, show_report, shown_progress
from hwprune.target import kind_of


def is_int8(dtype: str | None, target: str) -> bool:
    """Whether int8 is asked for that is no microcontroller's, which has it without asking."""
    return dtype == INT8 and kind_of(target) != "mcu"


def compile_in_int8(
    given: tuple[Any, Any, Any],
    asked: Mapping[str, Any],
    pruning: Mapping[str, Any],
    out: Path,
    seed: int,
    name: str,
    as_json: bool,
) -> None:
    """Compile, write the directory, say what came out. `given`: model, inputs, images."""
    from hwprune.int8_compile import compile_int8

    model, inputs, images = given
    asked = {k: v for k, v in asked.items() if k != "dtype"}
    with shown_progress(as_json) as progress:
        result = compile_int8(
            model, inputs, out=out, calibrate=images, seed=seed, progress=progress, name=name,
            **asked, **pruning,
        )  # fmt: skip
    if as_json:
        print_json(result.report)
        return
    if result.pruned is not None:
        show_report(result.report, as_json=False)
    _show(result.report, out)


def _show(report: Mapping[str, Any], out: Path) -> None:
    console = Console()
    if "int8_latency" in report:
        _show_latency(report, console)
    else:
        console.print(f"latency not measured: {report['target']} is not this machine")
    ran = f" under {report['ran_on']}" if report["ran_on"] else ""
    console.print(
        f"{report['bit_exact']} inputs gave the integer reference's outputs bit for bit{ran}"
        if report["bit_exact"]
        else "not run: it is another machine's, and no emulator is installed (qemu-user-static)"
    )
    seen = report["agreement"]
    console.print(
        f"top-1 agreement with the dense float32 network {100 * seen['top1_agreement']:.1f} % "
        f"(cosine {seen['cosine']:.4f}) on {seen['images']} {seen['on']}; "
        f"calibrated on {report['calibration']}"
    )
    noisy = [row for row in report["values"] if row["snr_db"] is not None]
    if noisy:
        worst = min(noisy, key=lambda row: row["snr_db"])
        console.print(f"least signal to noise {worst['snr_db']:.1f} dB, at {worst['name']}")
    console.print(f"Artifact in {out}: float32 in and out, int8 within")


def _show_latency(report: Mapping[str, Any], console: Console) -> None:
    found = report["int8_latency"]
    title = f"{report['model']} on {report['target']}, measured in turn"
    table = Table("", "ms", "ratio", title=title, title_justify="left")
    for name, us in found["us"].items():
        table.add_row(name.replace("_", " "), f"{us / 1e3:.3f}", f"{found['ratio'][name]:.3f}")
    console.print(table)
