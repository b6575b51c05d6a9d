"""`Machine`: the rates of a core that a prediction is made of, from the description of a target.

In: a `Target` with `[core]` and a clock. Out: a `Machine`.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprune.errors import TargetError
from hwprune.target import Target

IN_ORDER, OUT_OF_ORDER = "in-order", "out-of-order"
L1_BYTES, L2_BYTES = 32 << 10, 512 << 10  # where a target does not say


@dataclass(frozen=True)
class Machine:
    """A core of a device and what it shares; rates per cycle count whole vector registers."""

    lanes: int  # elements in a vector register
    registers: int
    fma_per_cycle: float
    loads_per_cycle: float
    in_order: bool
    clock_hz: float
    l1_bytes: int
    l2_bytes: int
    memory_bytes_per_s: float | None  # None where unknown
    threads: int

    @staticmethod
    def of(target: Target, threads: int) -> Machine:
        """The machine of a target, used by that many threads.

        Raises TargetError naming the key that the description lacks.
        """
        where = f"target {target.name}"
        if target.kind != "cpu":
            raise TargetError(f"latencies of kind {target.kind!r} cannot be predicted", where=where)
        core, clock_hz = target.core, target.clock_hz
        if core is None or clock_hz is None:
            missing = "[core]" if core is None else "cores.clock_hz"
            raise TargetError(
                f"its description lacks {missing}, without which no latency can be predicted",
                where=where,
                hint="see docs/targets.md",
            )
        if threads > target.cores:
            raise TargetError(
                f"{threads} threads on {target.cores} cores cannot be predicted",
                where=where,
                hint=f"at most --threads {target.cores}",
            )
        return Machine(
            target.lanes,
            target.vector_registers,
            core.fma_per_cycle,
            core.loads_per_cycle,
            core.in_order,
            clock_hz,
            target.l1d_bytes or L1_BYTES,
            target.l2_bytes or L2_BYTES,
            target.memory_bytes_per_s,
            threads,
        )

    @property
    def kind(self) -> str:
        """The class of the core, whose coefficients stand in where there are none of its own."""
        return IN_ORDER if self.in_order else OUT_OF_ORDER

    def us(self, cycles: float) -> float:
        """Microseconds of that many cycles."""
        return cycles / self.clock_hz * 1e6
