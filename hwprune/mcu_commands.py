"""`hwprune compile` for microcontrollers: options, the library's call, what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hwprune.errors import BudgetError, HwpruneError
from hwprune.shown import print_json, shown_progress
from hwprune.target import FLOAT32, kind_of

_KINDS = ("int8", FLOAT32)


@dataclass(frozen=True)
class Kernels:
    """What kernels compute in: float32 or int8, and that with operators in float32 if need be."""

    floats: bool = False
    float_fallback: bool = False


def kernels_of(dtype: str | None, target: str, float_fallback: bool) -> Kernels:
    """What is asked of a microcontroller's kernels.

    Raises HwpruneError for a type that they do not have, and for a fallback from anything but int8.
    """
    mcu = kind_of(target) == "mcu"
    floats = mcu and dtype == FLOAT32
    if mcu and dtype is not None and dtype not in _KINDS:
        raise HwpruneError(
            f"target {target!r} has no kernels in {dtype}", where="dtype", hint=" or ".join(_KINDS)
        )
    if float_fallback and (floats or not mcu):
        raise HwpruneError(
            "only int8 networks for microcontrollers have a fallback",
            where="float-fallback",
            hint="leave it out",
        )
    return Kernels(floats, float_fallback)


def refuse_memory(asked: Mapping[str, str | None]) -> None:
    """Raise BudgetError for budgets of memory where the target is no microcontroller."""
    for name, value in asked.items():
        if value is not None:
            raise BudgetError(
                "only microcontrollers have such a budget",
                where=name,
                hint="choose a target of kind mcu; hwprune targets lists them",
            )


def compile_for_mcu(
    given: tuple[Any, Any, Any],
    asked: Mapping[str, Any],
    pruning: Mapping[str, Any],
    out: Path,
    seed: int,
    name: str,
    as_json: bool,
    kernels: Kernels,
) -> None:
    """Compile, write the folder, say what it needs.

    `given`: model, inputs, calibration images.
    """
    from hwprune.mcu_build import compile_mcu
    from hwprune.mcu_float import compile_mcu_float
    from hwprune.mcu_price.profile import check_single
    from hwprune.quantize.config import QuantConfig

    check_single(asked.get("threads", 1), asked.get("boards"))
    none_of_it = ("target", "threads", "boards", "dtype")
    budgets = {k: v for k, v in asked.items() if k not in none_of_it}
    model, inputs, images = given
    config = QuantConfig(float_fallback=kernels.float_fallback)
    compiled: Any = compile_mcu_float if kernels.floats else partial(compile_mcu, config=config)
    with shown_progress(as_json) as progress:
        result = compiled(
            model, inputs, out=out, target=asked["target"], calibrate=images, budgets=budgets,
            pruning=pruning, seed=seed, progress=progress, name=name,
        )  # fmt: skip
    if as_json:
        print_json(result.report)
    else:
        _show(result.report, out)


def _show(report: Mapping[str, Any], out: Path) -> None:
    console = Console()
    if "pruned" in report:
        _show_both(report, console)
    floats = report.get("dtype") == FLOAT32
    console.print(
        f"{report['model']} on {report['target']}{', float32' * floats}: "
        f"{report['instructions']:,} instructions "
        f"({report['instructions_per_mac']:.2f} a multiply-accumulate; emulator), "
        f"{report['latency_ms']:.2f} ms (model)"
    )
    console.print(
        f"SRAM {report['arena_bytes']:,} bytes (no plan needs less than "
        f"{report['arena_lower_bound_bytes']:,}; peak {report['arena_peak']}), "
        f"flash {report['flash_bytes']:,} bytes with the test program"
    )
    console.print(f"{report['test_vectors']} test vectors {_checked(report)}")
    console.print(f"Artifact in {out}: make -C {out} run")


def _checked(report: Mapping[str, Any]) -> str:
    """What the test vectors of the emulated board were compared with, and how."""
    if report.get("dtype") == FLOAT32:
        return f"are within {report['tolerance']} of PyTorch"
    calibrated = f"calibrated on {report['calibration']}"
    alone = report["float_operators"]
    if not alone:
        return f"equal the integer reference bit for bit; {calibrated}"
    names = "\n".join(f"  {f['operator']}, {f['where']}" for f in alone)
    return (
        f"are within {report['output_steps']} steps of the reference; {calibrated}\n"
        f"in float32, each within {alone[0]['tolerance']} of PyTorch, all others bit for bit:\n"
        f"{names}"
    )


def _show_both(report: Mapping[str, Any], console: Console) -> None:
    """Dense and pruned side by side."""
    table = Table("", "dense", "pruned", title=f"Budget {_budgets(report['budget'])}")
    dense, pruned = report["dense"], report["pruned"]
    for label, key, form in _LINES:
        cells = [form.format(side[key]) if side else "does not fit" for side in (dense, pruned)]
        table.add_row(label, *cells)
    console.print(table)
    console.print(f"agreement with the float network on {report['agreement_on']}")


def _budgets(budgets: Mapping[str, str]) -> str:
    names = {name: name.removesuffix("_us").removesuffix("_bytes") for name in budgets}
    return ", ".join(f"{names[name]} {text}" for name, text in budgets.items())


_LINES = (
    ("multiply-accumulates", "macs", "{:,}"),
    ("instructions (emulator)", "instructions", "{:,}"),
    ("cycles (model)", "cycles", "{:,}"),
    ("ms (model)", "latency_ms", "{:.2f}"),
    ("SRAM bytes (linked)", "sram_bytes", "{:,}"),
    ("flash bytes (linked)", "flash_bytes", "{:,}"),
    ("top-1 agreement", "top1_agreement", "{:.1%}"),
)
