"""Whether budgets of a microcontroller can be met; if not, by how much and what is to blame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hwprune.budget import FLASH, LATENCY, SRAM
from hwprune.cost import Cost
from hwprune.errors import BudgetError
from hwprune.mcu_price.memory import Memory
from hwprune.mcu_price.network import Emulated
from hwprune.target import Target


def check_memory(
    memory: Memory,
    smallest: Mapping[str, int],
    limits: Mapping[str, float],
    fixed: Mapping[str, float],
) -> None:
    """Raise BudgetError where even the smallest widths need more SRAM or flash than `limits`.

    `fixed`: bytes of each that do not depend on the widths.
    """
    if SRAM in limits and memory.steps:
        step = memory.peak(smallest)
        _check(
            SRAM, limits[SRAM], step.bytes(smallest) + fixed[SRAM],
            f"{fixed[SRAM]:.0f} of them stack and outputs, the others alive while {step.name} "
            f"runs: {largest(step.costs, smallest)} alone",
        )  # fmt: skip
    if FLASH in limits:
        worst = f"{fixed[FLASH]:.0f} of them code"
        if memory.constants:
            worst += f", of the weights {largest(memory.constants, smallest)}"
        _check(FLASH, limits[FLASH], memory.constant_bytes(smallest) + fixed[FLASH], worst)


def check_device(network: Emulated, target: Target, priced: bool = True) -> None:
    """Raise BudgetError where a network needs more SRAM or flash than the device has.

    `priced`: whether such a network can be pruned to a budget of memory.
    """
    constants = {call.name: call.constant_bytes for call in network.model.calls}
    heaviest = max(constants, key=lambda name: constants[name], default="no weights")
    for what, need, room, more in (
        ("SRAM", network.sram_bytes, target.sram_bytes, f"at most while {network.model.peak} runs"),
        ("flash", network.flash_bytes, target.flash_bytes, f"{heaviest} has most of the weights"),
    ):
        if room is not None and need > room:
            budget = f" with --{what.lower()} {room}" if priced else ""
            raise BudgetError(
                f"the network needs {need} bytes of {what}, {target.name} has {room}: "
                f"{need - room} too many ({more})",
                hint=f"prune it{budget}, or choose a larger device",
            )


def check_time(goal_us: float, times_us: Mapping[str, float], dense_us: float) -> None:
    """Raise BudgetError where the narrowest kernels, by name, take longer than the budget."""
    least_us = sum(times_us.values())
    if least_us <= goal_us:
        return
    name = max(times_us, key=lambda kernel: times_us[kernel])
    raise BudgetError(
        f"cannot be met: {goal_us / 1e3:.6g} ms asked, about {least_us / 1e3:.4g} ms is the "
        f"smallest reachable ({100 * least_us / dense_us:.1f}% of the dense network; "
        f"{name} takes {times_us[name] / 1e3:.4g} ms of it)",
        where="latency",
        hint="raise the budget",
    )


def largest(costs: Sequence[Cost], widths: Mapping[str, int]) -> str:
    """The value that takes most at these widths: "conv2d_1 4096 bytes"."""
    cost = max(costs, key=lambda c: c.at(widths) / c.count)
    return f"{cost.name} {cost.at(widths) / cost.count:.0f} bytes"


def missed(
    resource: str, budget: float, value: float, more: str = "", smallest: str = "found"
) -> BudgetError:
    """The error for a budget that stays unmet: what is needed, and by how much it is exceeded."""
    if resource == LATENCY:
        text = f"{budget / 1e3:.6g} ms asked, {value / 1e3:.6g} ms is the smallest {smallest}"
    else:
        over = value - budget
        text = (
            f"{budget:.0f} bytes asked, {value:.0f} bytes is the smallest {smallest}: "
            f"{over:.0f} too many"
        )
    where = resource.removesuffix("_us").removesuffix("_bytes")
    return BudgetError(
        f"cannot be met: {text}" + (f" ({more})" if more else ""),
        where=where,
        hint="raise the budget",
    )


def _check(resource: str, limit: float, least: float, more: str) -> None:
    if least > limit:
        raise missed(resource, limit, least, more, "reachable")
