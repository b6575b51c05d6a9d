"""The four networks of MLPerf Tiny in int8 on emulated microcontrollers: instructions, SRAM, flash.

    python -m benchmarks.mcu [--quick] [--core NAME] [--data DIR] [--out FILE]

Dense, pruned to half the multiply-accumulates, and on M4, M7 and M55 to half the latency
(`hwprune compile --latency 50%`: every kernel priced on the emulated board). Networks have random
weights and are calibrated on random inputs: neither changes what a run costs. Instructions are
counted by the emulator; cycles and ms are a model's (hwprune/emulator/cycles.py). Beside them stand
the published latencies of `mlperf_tiny_v1.0_latency_ms.csv` in DIR, if it is there. Rows that are
in FILE are not run again.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from examples import tiny
from hwprune.budget import LATENCY
from hwprune.lower.mcu.model import CModel
from hwprune.mcu_build import compile_mcu
from hwprune.mcu_program import run_on_emulator
from hwprune.target import load_target

Row = dict[str, Any]
CORES = ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55", "cortex-m0plus")
PRICED = ("cortex-m4", "cortex-m7", "cortex-m55")
HALF_LATENCY = "half the latency"
VARIANTS = {"dense": {}, "half the MACs": {"macs": "50%"}, HALF_LATENCY: {"latency": "50%"}}
TASKS = {"resnet8": "ic", "ds_cnn": "kws", "mobilenet": "vww", "autoencoder": "ad"}
PUBLISHED = "mlperf_tiny_v1.0_latency_ms.csv"
SYSTEMS = {
    "cortex-m4": {
        "microTVM": ("OctoML", "microtvm_native/NUCLEO_L4R5ZI"),
        "microTVM + CMSIS-NN": ("OctoML", "microtvm_cmsis_nn/NUCLEO_L4R5ZI"),
        "ST": ("STMicroelectronics", "NUCLEO_L4R5ZI"),
        "Plumerai": ("plumerai", "NUCLEO_L4R5ZI"),
    },
    "cortex-m7": {"Plumerai": ("plumerai", "DISCO_F746NG")},
    "cortex-m33": {"Plumerai": ("plumerai", "B_U585I_IOT02A")},
}


def main() -> None:
    """Measure what is missing, show all."""
    parser = common.parser(__doc__ or "", "the keyword spotter, dense, on one core")
    parser.add_argument("--core", action="append", choices=CORES, help="all if not given")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR")
    given = parser.parse_args()
    published = _published(given.data / PUBLISHED)
    rows = common.rows_of(given.out)
    done = {(row["model"], row["variant"], row["core"]) for row in rows}
    for name in ("ds_cnn",) if given.quick else TASKS:
        for variant in ("dense",) if given.quick else VARIANTS:
            cores = given.core or (CORES[:1] if given.quick else CORES)
            for core in cores:
                if (name, variant, core) in done or (
                    variant == HALF_LATENCY and core not in PRICED
                ):
                    continue
                row = _measure(name, VARIANTS[variant], core) | {"variant": variant}
                rows.append(row | {"published_ms": published.get((core, name), {})})
                if given.out is not None:
                    common.write(given.out, common.envelope(rows))
    rows.sort(key=lambda row: (CORES.index(row["core"]), list(TASKS).index(row["model"])))
    show(rows)
    common.finish(given.out, rows)


def show(rows: Sequence[Row]) -> None:
    """A line for every network on every core."""
    heads = ["core", "network", "variant", "instructions", "a MAC", "ms (model)", "arena", "flash"]
    lines = [
        [
            row["core"], row["model"], row["variant"], str(row["instructions"]),
            f"{row['instructions_per_mac']:.2f}", f"{row['latency_ms']:.1f}",
            str(row["arena_bytes"]), str(row["flash_bytes"]),
        ]
        for row in rows
    ]  # fmt: skip
    common.table("MLPerf Tiny networks, int8, emulated", heads, lines, text=3)
    wrong = [f"{row['model']} on {row['core']}" for row in rows if not row["bit_exact"]]
    common.console.print(f"not bit-exact: {', '.join(wrong)}" if wrong else "all bit-exact")


def _measure(name: str, budgets: dict[str, str], core: str) -> Row:
    torch.manual_seed(0)
    inputs = torch.randn(2, *tiny.SHAPES[name][1:])
    with tempfile.TemporaryDirectory() as folder:
        done = compile_mcu(
            getattr(tiny, name)(), (inputs,), out=Path(folder) / "out", target=core,
            budgets=budgets, name=name,
        )  # fmt: skip
        place = Path(folder) / "traced"
        place.mkdir()
        traced = run_on_emulator(done.model, load_target(core), done.vectors, place, trace=True)
    row = {
        "model": name,
        "core": core,
        "instructions": done.run.instructions,
        "macs": done.model.macs,
        "instructions_per_mac": round(done.run.instructions / done.model.macs, 3),
        "cycles": done.estimate.cycles,
        "latency_ms": round(done.estimate.latency_ms, 3),
        "latency_source": f"model: {done.estimate.how}",
        "arena_bytes": done.model.arena_bytes,
        "arena_lower_bound_bytes": done.model.storage.memory.least_bytes,
        "arena_peak": done.model.peak,
        "flash_bytes": done.run.elf.flash_bytes,
        "sram_bytes": done.run.elf.sram_bytes,
        "bit_exact": done.run.bit_exact and traced.bit_exact,
        "kernels": _kernels(done.model, traced.by_call),
    }
    return row | (_searched(done.report) if LATENCY in done.report.get("limits", {}) else {})


def _searched(report: dict[str, Any]) -> Row:
    """How a latency budget was met."""
    dense_ms = report["dense"]["latency_ms"]
    return {
        "dense_latency_ms": dense_ms,
        "latency_share": round(report["latency_ms"] / dense_ms, 4),
        "predicted_ms": round(report["predicted"][LATENCY] / 1e3, 4),
        "turns": report["turns"],
        "kernel_rows": report["kernel_rows"],
        "seconds": report["seconds"],
    }


def _kernels(model: CModel, counts: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        {
            "name": call.name,
            "rule": call.rule,
            "macs": call.macs,
            "instructions": count,
            "instructions_per_mac": round(count / call.macs, 3) if call.macs else None,
        }
        for call, count in zip(model.calls, counts, strict=True)
    ]


def _published(file: Path) -> dict[tuple[str, str], dict[str, float]]:
    if not file.is_file():
        return {}
    found: dict[tuple[str, str], dict[str, float]] = {}
    with file.open(newline="") as text:
        for row in csv.DictReader(text):
            for core, systems in SYSTEMS.items():
                for label, key in systems.items():
                    if (row["org"], row["system"]) == key:
                        model = next(m for m, task in TASKS.items() if task == row["task"])
                        found.setdefault((core, model), {})[label] = float(row["latency_ms"])
    return found


if __name__ == "__main__":
    main()
