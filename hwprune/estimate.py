"""The latency of a network that cannot be run here: the sum of its kernels' rows, with an interval.

In: a `Program`, a `Target` that is not here, its table. Out: an `Estimate` of a dense and a pruned
network, every kernel priced at its exact sizes. A sum of kernels is never a measurement of their
network, even where boards have measured them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hwprune.calibrate import Calibration
from hwprune.capture import Program, specialize
from hwprune.cost import Cost
from hwprune.lower import fold_batch_norm, fuse
from hwprune.measure import Measured
from hwprune.obtain import obtain, open_table
from hwprune.predict.calibration import find_model
from hwprune.predict.fill import MODEL
from hwprune.predict.machine import Machine
from hwprune.price import Sources, count_sources
from hwprune.table import LatencyTable, Row
from hwprune.target import Target


@dataclass(frozen=True)
class KernelTime:
    """A kernel of a network: its call, the parameter that it reads, where its time comes from."""

    name: str
    parameter: str
    us: float
    source: str


@dataclass(frozen=True)
class Span:
    """A network's latency and its interval, microseconds.

    The ends are the sums of the kernels' ends: as if all were wrong in the same direction.
    """

    median_us: float
    low_us: float
    high_us: float
    kernels: tuple[KernelTime, ...]


@dataclass(frozen=True)
class Estimate:
    """What takes the place of a measurement: dense and pruned networks, and what it rests on."""

    dense: Span
    pruned: Span
    described: str  # the calibration, in a line
    costs: tuple[Cost, ...] = ()
    calibration: Calibration = field(default_factory=Calibration)
    kernels: Measured | None = None
    attempts: int = 0

    @property
    def ratio(self) -> float:
        """Pruned over dense."""
        return self.pruned.median_us / self.dense.median_us

    @property
    def origin(self) -> str:
        """What the latencies rest on: the calibration, and kernels that boards have measured."""
        kernels = (*self.dense.kernels, *self.pruned.kernels)
        measured = sum(kernel.source != MODEL for kernel in kernels)
        if not measured:
            return self.described
        return f"{self.described}; {measured} of {len(kernels)} kernels measured on a board"

    @property
    def sources(self) -> Sources:
        """How the kernel latencies of the search were found."""
        return count_sources(self.costs)


def estimate_network(program: Program, target: Target, threads: int, table: LatencyTable) -> Span:
    """The latency of a program. Raises TableError naming a kernel that cannot be predicted."""
    folded = fold_batch_norm(specialize(program))
    calls = fuse(folded)
    obtain([call.workload for call in calls], target, threads, table)
    rows = []
    for call in calls:
        table.latency_us(call.workload, threads)  # raises where there is no usable row
        row = table.get(call.workload, threads)
        assert row is not None
        rows.append(row)
    kernels = tuple(
        KernelTime(call.name, call.params[0] if call.params else "", row.median_us, row.source)
        for call, row in zip(calls, rows, strict=True)
    )
    return Span(_sum(rows, "median_us"), _sum(rows, "p10_us"), _sum(rows, "p90_us"), kernels)


def estimate_pair(dense: Program, pruned: Program, target: Target, threads: int) -> Estimate:
    """Both networks by the rows of today. Raises what `estimate_network` raises."""
    with open_table(target) as table:
        spans = [estimate_network(p, target, threads, table) for p in (dense, pruned)]
    return Estimate(spans[0], spans[1], describe_model(target, threads))


def describe_model(target: Target, threads: int) -> str:
    """Where the predictions of a target come from, in a line."""
    return find_model(target, Machine.of(target, threads)).describe()


def _sum(rows: Sequence[Row], which: str) -> float:
    return float(sum(getattr(row, which) for row in rows))
