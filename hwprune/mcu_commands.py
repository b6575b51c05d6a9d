"""`hwprune compile` for microcontrollers: options, the library's call, what came out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hwprune.errors import BudgetError, HwpruneError
from hwprune.shown import print_json, shown_progress
from hwprune.target import FLOAT32

_KINDS = ("int8", FLOAT32)


def is_mcu(target: str) -> bool:
    """Whether a target is a microcontroller. Raises TargetError for an unknown one."""
    from hwprune.target import load_target

    return load_target(target).kind == "mcu"


def is_float(dtype: str | None, target: str) -> bool:
    """Whether float32 C for a microcontroller is asked for.

    Raises HwpruneError for a type that no microcontroller's kernels have.
    """
    if dtype is None or not is_mcu(target):
        return False
    if dtype not in _KINDS:
        raise HwpruneError(
            f"target {target!r} has no kernels in {dtype}", where="dtype", hint=" or ".join(_KINDS)
        )
    return dtype == FLOAT32


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
    floats: bool,
) -> None:
    """Compile to int8 or, with `floats`, to float32, write the folder, say what it needs.

    `given`: model, inputs, calibration images.
    """
    from hwprune.mcu_build import compile_mcu
    from hwprune.mcu_float import compile_mcu_float
    from hwprune.mcu_price.profile import check_single

    check_single(asked.get("threads", 1), asked.get("boards"))
    none_of_it = ("target", "threads", "boards", "dtype")
    budgets = {k: v for k, v in asked.items() if k not in none_of_it}
    model, inputs, images = given
    with shown_progress(as_json) as progress:
        result = (compile_mcu_float if floats else compile_mcu)(
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
    console.print(
        f"{report['test_vectors']} test vectors "
        + (
            f"are within {report['tolerance']} of PyTorch"
            if floats
            else f"equal the integer reference bit for bit; calibrated on {report['calibration']}"
        )
    )
    console.print(f"Artifact in {out}: make -C {out} run")


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
