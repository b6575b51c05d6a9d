"""The four networks of MLPerf Tiny in int8 on emulated microcontrollers: instructions, SRAM, flash.

    python -m benchmarks.mcu [--data DIR] [--cores cortex-m4,cortex-m7,cortex-m55]

Networks have random weights and are calibrated on random inputs: neither changes what a run costs.
Instructions are counted by the emulator; cycles and ms are a model's (hwprune/emulator/cycles.py).
Beside them stand the published latencies of `mlperf_tiny_v1.0_latency_ms.csv` in DIR, if it is
there.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from examples import tiny
from hwprune.capture import capture
from hwprune.emulator.cycles import estimate_cycles
from hwprune.lower.mcu.model import CModel, lower_to_c
from hwprune.mcu_program import make_vectors, run_on_emulator
from hwprune.quantize.quantizer import Quantized, quantize_program
from hwprune.target import Target, load_target

RESULTS = Path(__file__).parent / "results" / "mcu.json"
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--cores", default="cortex-m4,cortex-m7,cortex-m55")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    published = _published(arguments.data / PUBLISHED)
    rows = []
    for name in TASKS:
        quantized, inputs = _quantized(name)
        for core in arguments.cores.split(","):
            row = _measure(name, quantized, inputs, load_target(core))
            row["published_ms"] = published.get((core, name), {})
            rows.append(row)
            print(json.dumps({k: v for k, v in row.items() if k != "kernels"}), flush=True)
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


def _quantized(name: str) -> tuple[Quantized, torch.Tensor]:
    torch.manual_seed(0)
    inputs = torch.randn(32, *tiny.SHAPES[name][1:])
    program = capture(getattr(tiny, name)(), (inputs[:2],), name=name)
    return quantize_program(program, inputs), inputs


def _measure(
    name: str, quantized: Quantized, inputs: torch.Tensor, target: Target
) -> dict[str, Any]:
    model = lower_to_c(quantized.graph, target)
    vectors = make_vectors(model, quantized.integers(inputs[:4]))
    with tempfile.TemporaryDirectory() as folder:
        traced = run_on_emulator(model, target, vectors, Path(folder), trace=True)
        run = run_on_emulator(model, target, vectors, Path(folder))
        estimate = estimate_cycles(target, run.elf, run.instructions, model.weight_reads)
    return {
        "model": name,
        "core": target.name,
        "variant": "dense",
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
