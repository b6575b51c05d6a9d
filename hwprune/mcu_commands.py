"""`hwprune compile` for microcontrollers: options, the library's call, what came out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hwprune.errors import BudgetError
from hwprune.shown import print_json, shown_progress

MCU_ONLY = (
    "only microcontrollers have such a budget",
    "choose a target of kind mcu; hwprune targets lists them",
)
INT8_ONLY = "only int8 networks have such a budget", "leave --dtype out"


def refuse_memory(asked: Mapping[str, str | None], why: tuple[str, str]) -> None:
    """Raise BudgetError for budgets of memory: the reason, and what to do."""
    message, hint = why
    for name, value in asked.items():
        if value is not None:
            raise BudgetError(message, where=name, hint=hint)


def compile_for_mcu(
    given: tuple[Any, Any, Any],
    asked: Mapping[str, Any],
    pruning: Mapping[str, Any],
    out: Path,
    seed: int,
    name: str,
    as_json: bool,
) -> None:
    """Compile, write the folder, say what it needs. `given`: model, inputs, calibration images."""
    from hwprune.mcu_build import compile_mcu
    from hwprune.mcu_price.profile import check_single

    check_single(asked.get("threads", 1), asked.get("boards"))
    none_of_it = ("target", "threads", "boards", "dtype")
    budgets = {k: v for k, v in asked.items() if k not in none_of_it}
    model, inputs, images = given
    with shown_progress(as_json) as progress:
        result = compile_mcu(
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
    console.print(
        f"{report['model']} on {report['target']}: {report['instructions']:,} instructions "
        f"({report['instructions_per_mac']:.2f} a multiply-accumulate; emulator), "
        f"{report['latency_ms']:.2f} ms (model)"
    )
    console.print(
        f"SRAM {report['arena_bytes']:,} bytes (no plan needs less than "
        f"{report['arena_lower_bound_bytes']:,}; peak {report['arena_peak']}), "
        f"flash {report['flash_bytes']:,} bytes with the test program"
    )
    console.print(
        f"{report['test_vectors']} test vectors equal the integer reference bit for bit; "
        f"calibrated on {report['calibration']}"
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
