"""The four networks of MLPerf Tiny in int8 on emulated microcontrollers: instructions, SRAM, flash.

    python -m benchmarks.mcu [--quick] [--core NAME] [--data DIR] [--out FILE]

Dense, and pruned to half the multiply-accumulates. Networks have random weights and are calibrated
on random inputs: neither changes what a run costs. Instructions are counted by the emulator; cycles
and ms are a model's (hwprune/emulator/cycles.py). Beside them stand the published latencies of
`mlperf_tiny_v1.0_latency_ms.csv` in DIR, if it is there. Rows that are in FILE are not run again.
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
from hwprune.capture import capture
from hwprune.emulator.cycles import estimate_cycles
from hwprune.lower.mcu.model import CModel, lower_to_c
from hwprune.mcu_program import make_vectors, run_on_emulator
from hwprune.pipeline import prune
from hwprune.quantize.quantizer import Quantized, quantize_program
from hwprune.target import Target, load_target

Row = dict[str, Any]
CORES = ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55", "cortex-m0plus")
VARIANTS = {"dense": None, "half the MACs": "50%"}
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
            missing = [core for core in cores if (name, variant, core) not in done]
            if not missing:
                continue
            quantized, inputs = _quantized(name, VARIANTS[variant])
            for core in missing:
                row = _measure(name, quantized, inputs, load_target(core)) | {"variant": variant}
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


def _quantized(name: str, macs: str | None) -> tuple[Quantized, torch.Tensor]:
    torch.manual_seed(0)
    inputs = torch.randn(32, *tiny.SHAPES[name][1:])
    program = capture(getattr(tiny, name)(), (inputs[:2],), name=name)
    if macs is not None:
        program = prune(program, macs=macs, recover="none").program
    return quantize_program(program, inputs), inputs


def _measure(name: str, quantized: Quantized, inputs: torch.Tensor, target: Target) -> Row:
    model = lower_to_c(quantized.graph, target)
    vectors = make_vectors(model, quantized.integers(inputs[:4]))
    with tempfile.TemporaryDirectory() as folder:
        traced = run_on_emulator(model, target, vectors, Path(folder), trace=True)
        run = run_on_emulator(model, target, vectors, Path(folder))
        estimate = estimate_cycles(target, run.elf, run.instructions, model.weight_reads)
    return {
        "model": name,
        "core": target.name,
        "instructions": run.instructions,
        "macs": model.macs,
        "instructions_per_mac": round(run.instructions / model.macs, 3),
        "cycles": estimate.cycles,
        "latency_ms": round(estimate.latency_ms, 3),
        "latency_source": f"model: {estimate.how}",
        "arena_bytes": model.arena_bytes,
        "arena_lower_bound_bytes": model.storage.memory.least_bytes,
        "arena_peak": model.peak,
        "flash_bytes": run.elf.flash_bytes,
        "bit_exact": run.bit_exact and traced.bit_exact,
        "kernels": _kernels(model, traced.by_call),
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
