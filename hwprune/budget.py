"""Budgets: "8ms", "50%", "64KiB" -> a `Budget` on latency, operations, parameters or memory."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from hwprune.errors import BudgetError

LATENCY, MACS, PARAMS = "latency_us", "macs", "params"
SRAM, FLASH = "sram_bytes", "flash_bytes"
_BYTES = {"": 1.0, "B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "KiB": 2.0**10, "MiB": 2.0**20}
_UNITS = {
    LATENCY: {"ns": 1e-3, "us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6},
    MACS: {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    PARAMS: {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9},
    SRAM: _BYTES,
    FLASH: _BYTES,
}
_EXAMPLES = {
    LATENCY: "8ms, 800us or 50%",
    MACS: "300M, 1.2G or 50%",
    PARAMS: "5M or 50%",
    SRAM: "64KiB or 50%",
    FLASH: "512KiB or 50%",
}
_NAMES = {LATENCY: "latency", MACS: "macs", PARAMS: "params", SRAM: "sram", FLASH: "flash"}


@dataclass(frozen=True)
class Budget:
    """At most `value` of a resource: absolute (us, MACs, bytes, …), or a share of the dense."""

    resource: str
    value: float
    relative: bool

    def absolute(self, dense: float) -> float:
        """The budget in the resource's own unit, given what the dense network takes."""
        return self.value * dense if self.relative else self.value

    def __str__(self) -> str:
        """As a person writes it: 50%, 8 ms, 300M, 64 KiB."""
        if self.relative:
            return f"{100 * self.value:g}%"
        if self.resource == LATENCY:
            return f"{self.value / 1000:g} ms"
        if self.resource in (SRAM, FLASH):
            whole = self.value % 1024 == 0
            return f"{self.value / 1024:g} KiB" if whole else f"{self.value:.0f} bytes"
        for suffix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if self.value >= factor:
                return f"{self.value / factor:g}{suffix}"
        return f"{self.value:g}"


def parse_budget(text: str | float | None, resource: str) -> Budget | None:
    """Read a budget; a bare number up to 1 is a share of the dense. None stays None.

    Raises BudgetError if it is malformed, not positive or above 100 %.
    """
    if text is None:
        return None
    where = _NAMES[resource]
    hint = f"write it like {_EXAMPLES[resource]}"
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(\D*?)\s*", str(text))
    if match is None:
        raise BudgetError(f"{text!r} is not a budget", where=where, hint=hint)
    value, unit = float(match[1]), match[2]
    if not math.isfinite(value) or value <= 0:
        raise BudgetError(f"a budget of {text} leaves nothing", where=where, hint=hint)
    if unit == "%" or (unit == "" and value <= 1):
        share = value / 100 if unit == "%" else value
        if share > 1:
            raise BudgetError(
                f"{text} is more than the dense network takes", where=where, hint="at most 100%"
            )
        return Budget(resource, share, True)
    if unit not in _UNITS[resource] or (resource == LATENCY and unit == ""):
        raise BudgetError(f"{text!r} has no unit of {where}", where=where, hint=hint)
    return Budget(resource, value * _UNITS[resource][unit], False)
