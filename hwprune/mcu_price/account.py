"""What a network takes on a microcontroller, and what pruning changed: the facts of report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hwprune.budget import Budget
from hwprune.capture import Program
from hwprune.given import HELD_OUT
from hwprune.mcu_price.network import Network
from hwprune.mcu_price.prepared import McuPrepared
from hwprune.mcu_price.search import Found
from hwprune.recover import fidelity


def takes(network: Network) -> dict[str, Any]:
    """Instructions (counted), cycles and milliseconds (modelled), bytes (linked) of a network."""
    return {
        "macs": network.model.macs,
        "instructions": network.run.instructions,
        "cycles": network.estimate.cycles,
        "latency_ms": round(network.estimate.latency_ms, 4),
        "sram_bytes": network.sram_bytes,
        "arena_bytes": network.model.arena_bytes,
        "flash_bytes": network.flash_bytes,
        "bit_exact": network.bit_exact,
    }


def compare(
    ready: McuPrepared,
    found: Found,
    budgets: Mapping[str, Budget],
    images: Tensor | None,
    given: Tensor,
) -> dict[str, Any]:
    """Dense and pruned side by side, how the plan was found, and how far the outputs agree.

    Agreement with the float dense network is on images that recovery has not seen, if there are
    `images`, else on what was calibrated on (`given`).
    """
    held = given if images is None else images[::HELD_OUT]
    allocation, kernels = found.outcome.allocation, found.kernels
    report: dict[str, Any] = {
        "budget": {resource: str(budget) for resource, budget in budgets.items()},
        "limits": dict(found.limits),
        "predicted": dict(allocation.predicted),
        "dense": _side(ready.prepared.program, found.dense, held),
        "pruned": _side(ready.prepared.program, found.pruned, held),
        "agreement_on": f"{len(held)} "
        + ("random inputs" if images is None else "calibration inputs kept from recovery"),
        "turns": found.turns,
        "search": {
            "objective": allocation.objective,
            "bound": allocation.bound,
            "gap": allocation.gap,
            "seconds": round(allocation.seconds, 3),
        },
        "groups": [
            {"name": g.name, "before": g.width, "after": len(allocation.kept[g.name])}
            for g in ready.prepared.coupling.groups
        ],
    }
    if kernels is not None:
        report["kernel_rows"] = {
            "measured": kernels.measured, "reused": kernels.reused, "source": "emulator",
        }  # fmt: skip
    return report


def _side(program: Program, network: Network | None, held: Tensor) -> dict[str, Any] | None:
    """A network's needs, and how far its integers agree with the float dense network."""
    if network is None:
        return None
    return takes(network) | fidelity(_runner(program), _integers(network), held)


def _integers(network: Network) -> Any:
    return lambda batch: network.quantized(batch)[0]


def _runner(program: Program) -> Any:
    def run(batch: Tensor) -> Any:
        if program.dynamic_batch:
            return program.module(batch)
        return torch.cat([_first(program.module(x[None])) for x in batch])

    return run


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, Sequence) else output
    return found
