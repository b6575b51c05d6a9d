"""The facts of a network compiled for a microcontroller, and the folder that is written of it.

In: an `Emulated` network, int8 or float32, and its target. Out: a report, and files.
"""

from __future__ import annotations

import json
from os import PathLike
from typing import Any

import numpy as np

from hwprune.atomic import replace_directory
from hwprune.mcu_artifact import artifact_files
from hwprune.mcu_price.network import Emulated
from hwprune.target import Target

REPORT = "report.json"


def describe(network: Emulated, target: Target, calibration: str) -> dict[str, Any]:
    """The facts of a compiled network, as report.json has them."""
    model, run, estimate = network.model, network.run, network.estimate
    memory = model.storage.memory
    return {
        "model": model.graph.name,
        "target": target.name,
        "calibration": calibration,
        "macs": model.macs,
        "instructions": run.instructions,
        "instructions_source": "emulator",
        "instructions_per_mac": round(run.instructions / max(model.macs, 1), 4),
        "cycles": estimate.cycles,
        "latency_ms": round(estimate.latency_ms, 4),
        "latency_source": "model",
        "latency_model": estimate.how,
        "arena_bytes": model.arena_bytes,
        "arena_lower_bound_bytes": memory.least_bytes,
        "arena_peak": model.peak,
        "in_place": list(model.storage.in_place),
        "constant_bytes": model.constant_bytes,
        "flash_bytes": network.flash_bytes,
        "sram_bytes": network.sram_bytes,
        "test_vectors": run.count,
        "kernels": [
            {"name": c.name, "rule": c.rule, "macs": c.macs, "scratch_bytes": c.scratch_bytes}
            for c in model.calls
        ],
    }


def write_folder(
    network: Emulated, target: Target, report: dict[str, Any], out: str | PathLike[str]
) -> None:
    """Write the folder for a board's project with its report.json, all or nothing."""
    facts = {
        "FLASH": f"{report['flash_bytes']} bytes of {target.flash_bytes}",
        "INSTRUCTIONS": f"{report['instructions']} (emulator), {report['macs']} "
        "multiply-accumulates",
        "LATENCY": f"{report['latency_ms']:.2f} ms (model: {report['latency_model']})",
        "CALIBRATION": report["calibration"],
        "DEFINES": " ".join(f"-D{name}" for name in network.run.defines),
    }
    with replace_directory(out) as staging:
        for file, text in artifact_files(network.model, target, network.vectors, facts).items():
            (staging / file).write_text(text, encoding="utf-8")
        text = json.dumps(report, indent=1, default=_plain)
        (staging / REPORT).write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
