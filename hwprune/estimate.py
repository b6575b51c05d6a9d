"""The latency of a network that cannot be run here: the sum of its kernels' rows, with an interval.

In: a `Program`, a `Target` that is not here, its table. Out: an `Estimate` of a dense and a pruned
network, every kernel priced at its exact sizes. A sum of kernels is never a measurement of their
network, even where boards have measured them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hwprune.calibrate import Calibration
from hwprune.capture import Program, specialize
from hwprune.cost import Cost
from hwprune.lower import fold_batch_norm
from hwprune.lower.for_target import fuse_for
from hwprune.measure import Measured
from hwprune.obtain import obtain, open_table
from hwprune.predict.calibration import find_model
from hwprune.predict.device import device_of
from hwprune.predict.fill import MODEL
from hwprune.price import Sources, count_sources, usable_row
from hwprune.table import LatencyTable
from hwprune.target import Target


@dataclass(frozen=True)
class KernelTime:
    """A kernel of a network: its call, the parameter that it reads, where its time comes from."""

    name: str
    parameter: str
    us: float
    low_us: float
    high_us: float
    source: str


@dataclass(frozen=True)
class Span:
    """A network's latency and its interval, microseconds, as the sum of its kernels.

    The ends are the sums of the kernels' ends: as if all were wrong in the same direction.
    """

    kernels: tuple[KernelTime, ...]

    @property
    def median_us(self) -> float:
        """The latency."""
        return sum(kernel.us for kernel in self.kernels)

    @property
    def low_us(self) -> float:
        """The lower end."""
        return sum(kernel.low_us for kernel in self.kernels)

    @property
    def high_us(self) -> float:
        """The upper end."""
        return sum(kernel.high_us for kernel in self.kernels)


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
    broad: tuple[Cost, ...] = ()  # over all candidate widths; `costs` may be of those near the plan

    @property
    def ratio(self) -> float:
        """Pruned over dense."""
        return self.pruned.median_us / self.dense.median_us

    @property
    def origin(self) -> str:
        """What the latencies rest on: the calibration, and kernels that boards have measured."""
        return origin((*self.dense.kernels, *self.pruned.kernels), self.described)

    @property
    def sources(self) -> Sources:
        """How the kernel latencies of the search were found."""
        return count_sources(self.costs)


def origin(kernels: Sequence[KernelTime], described: str) -> str:
    """What a prediction rests on: the calibration, and kernels that boards have measured."""
    measured = sum(kernel.source != MODEL for kernel in kernels)
    if not measured:
        return described
    return f"{described}; {measured} of {len(kernels)} kernels measured on a board"


def estimate_network(
    program: Program,
    target: Target,
    threads: int,
    table: LatencyTable,
    costs: Sequence[Cost] = (),
    widths: Mapping[str, int] | None = None,
) -> Span:
    """The latency of a program, every kernel at its exact sizes.

    Where boards have measured kernels around those of `costs` at `widths`, what is interpolated
    between them counts rather than a model. Raises TableError naming a kernel without a row.
    """
    folded = fold_batch_norm(specialize(program))
    calls = fuse_for(folded, target).calls
    known = _interpolated(costs, widths or {})
    modelled = [call for call in calls if call.name not in known]
    obtain([call.workload for call in modelled], target, threads, table)
    kernels = []
    for call in calls:
        if call.name in known:
            found = known[call.name]
        else:
            row = usable_row(table, call.workload, threads)
            found = KernelTime("", "", row.median_us, row.p10_us, row.p90_us, row.source)
        parameter = call.params[0] if call.params else ""
        kernels.append(replace(found, name=call.name, parameter=parameter))
    return Span(tuple(kernels))


def _interpolated(costs: Sequence[Cost], widths: Mapping[str, int]) -> dict[str, KernelTime]:
    """By call: what measured kernels say of these widths."""
    found: dict[str, KernelTime] = {}
    for cost in costs:
        if cost.source != MODEL:
            low, high = cost.bounds(widths)
            us, low, high = (time / cost.count for time in (cost.at(widths), low, high))
            time = KernelTime("", "", us, low, high, cost.source)
            found |= dict.fromkeys(cost.calls, time)
    return found


def estimate_pair(dense: Program, pruned: Program, target: Target, threads: int) -> Estimate:
    """Both networks by the rows of today. Raises what `estimate_network` raises."""
    with open_table(target) as table:
        spans = [estimate_network(p, target, threads, table) for p in (dense, pruned)]
    return Estimate(spans[0], spans[1], describe_model(target, threads))


def describe_model(target: Target, threads: int) -> str:
    """Where the predictions of a target come from, in a line."""
    return find_model(target, device_of(target, threads)).describe()
