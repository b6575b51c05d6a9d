"""`hwprune compile --dtype float32` for microcontrollers: the library's call, what came out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from hwprune.errors import HwpruneError
from hwprune.shown import print_json, shown_progress
from hwprune.target import FLOAT32, kind_of

_KINDS = ("int8", FLOAT32)


def is_float(dtype: str | None, target: str) -> bool:
    """Whether float32 C for a microcontroller is asked for.

    Raises HwpruneError for a type that no microcontroller's kernels have.
    """
    if dtype is None or kind_of(target) != "mcu":
        return False
    if dtype not in _KINDS:
        raise HwpruneError(
            f"target {target!r} has no kernels in {dtype}", where="dtype", hint=" or ".join(_KINDS)
        )
    return dtype == FLOAT32


def compile_float_for_mcu(
    given: tuple[Any, Any, Any],
    asked: Mapping[str, Any],
    pruning: Mapping[str, Any],
    out: Path,
    seed: int,
    name: str,
    as_json: bool,
) -> None:
    """Compile, write the folder, say what it needs. `given`: model, inputs, calibration images."""
    from hwprune.mcu_float import compile_mcu_float

    if asked.get("threads", 1) != 1:
        raise HwpruneError("a microcontroller has one core", where="threads", hint="leave it at 1")
    budgets = {k: v for k, v in asked.items() if k not in ("target", "threads", "dtype")}
    model, inputs, images = given
    with shown_progress(as_json) as progress:
        result = compile_mcu_float(
            model, inputs, out=out, target=asked["target"], calibrate=images, budgets=budgets,
            pruning=pruning, seed=seed, progress=progress, name=name,
        )  # fmt: skip
    if as_json:
        print_json(result.report)
    else:
        _show(result.report, out)


def _show(report: Mapping[str, Any], out: Path) -> None:
    console = Console()
    console.print(
        f"{report['model']} on {report['target']}, float32: {report['instructions']:,} "
        f"instructions ({report['instructions_per_mac']:.2f} a multiply-accumulate; emulator), "
        f"{report['latency_ms']:.2f} ms (model)"
    )
    console.print(
        f"SRAM {report['arena_bytes']:,} bytes (no plan needs less than "
        f"{report['arena_lower_bound_bytes']:,}; peak {report['arena_peak']}), "
        f"flash {report['flash_bytes']:,} bytes with the test program"
    )
    console.print(
        f"{report['test_vectors']} test vectors are within {report['tolerance']} of PyTorch"
    )
    console.print(f"Artifact in {out}: make -C {out} run")
