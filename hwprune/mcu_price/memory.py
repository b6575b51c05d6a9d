"""What a network holds in SRAM at every step of its schedule, and in flash, over its widths.

In: the kernels of an int8 network as functions of the widths. Out: `Memory`. The peak of SRAM is a
maximum over steps: a budget is one linear constraint for each. Sizes of values are exact; those of
scratch and of packed weights are linear between kernels that are lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod

import numpy as np

from hwprune.cost import Candidates, Cost, axis_sizes, merged
from hwprune.coupling import Extent
from hwprune.interpolate import multilinear
from hwprune.lower.mcu.emit import CKernel
from hwprune.lower.mcu.memory import aligned
from hwprune.lower.mcu.storage import lifetimes, scratch_name
from hwprune.mcu_price.measure import kernel_of
from hwprune.mcu_price.prepared import McuPrepared
from hwprune.price import measured_points
from hwprune.target import Target
from hwprune.workload import Site


@dataclass(frozen=True)
class Step:
    """A call of the schedule and the bytes that are alive while it runs, by value."""

    name: str
    where: str
    costs: tuple[Cost, ...]

    def bytes(self, widths: Mapping[str, int]) -> float:
        """What is alive at these widths."""
        return sum(cost.at(widths) for cost in self.costs)


@dataclass(frozen=True)
class Memory:
    """Bytes of the arena at every step, and of constants by kernel, as functions of the widths."""

    steps: tuple[Step, ...]
    constants: tuple[Cost, ...]

    def peak(self, widths: Mapping[str, int]) -> Step:
        """The step at which most is alive. There is at least one."""
        return max(self.steps, key=lambda step: step.bytes(widths))

    def arena_bytes(self, widths: Mapping[str, int]) -> float:
        """What no arena can be smaller than."""
        return self.peak(widths).bytes(widths) if self.steps else 0.0

    def constant_bytes(self, widths: Mapping[str, int]) -> float:
        """Weights, biases and multipliers."""
        return sum(cost.at(widths) for cost in self.constants)


def memory_of(ready: McuPrepared) -> Memory:
    """What a network needs at any widths. Raises LoweringError for operators without a kernel."""
    return _Tabulator(ready).run()


class _Tabulator:
    def __init__(self, ready: McuPrepared) -> None:
        self.ready, self.graph = ready, ready.quantized.graph
        self.candidates: Candidates = ready.prepared.candidates
        self.target: Target = ready.prepared.target
        self.made: dict[object, CKernel] = {}

    def run(self) -> Memory:
        sites, graph = self.ready.sized.sites, self.graph
        kernels = [None if s is None else self._kernel(s, None) for s in sites]
        live = lifetimes(graph, kernels)
        steps = []
        for i, (op, site) in enumerate(zip(graph.operators, sites, strict=True)):
            if site is None:
                continue
            alive = [v.name for v in live.values if v.first <= i <= v.last]
            costs = [self._value(name) for name in alive if name in graph.by_name]
            if scratch_name(i) in alive:
                scratch = self._tabulated(site, lambda k: aligned(k.scratch_bytes))
                costs.append(replace(scratch, name="scratch"))
            steps.append(Step(op.name, op.where, tuple(costs)))
        constants = [
            replace(self._tabulated(site, _constant_bytes), count=len(names), calls=names)
            for site, names in merged(self.ready.sized.kernels).items()
        ]
        return Memory(tuple(steps), tuple(cost for cost in constants if cost.values.any()))

    @cached_property
    def _gates(self) -> dict[str, str]:
        sites = self.ready.sized.kernels
        return {site.call.output: site.branch for site in sites if site.branch}

    def _value(self, name: str) -> Cost:
        """The bytes of a tensor."""
        tensor, extents = self.graph.by_name[name], self.ready.sized.tensors[name]
        size = np.dtype(tensor.dtype).itemsize
        axes = tuple(dict.fromkeys(e for e in extents if e.terms))
        if len(axes) > 2:
            extents, axes = tuple(map(Extent, tensor.shape)), ()

        def bytes_at(point: tuple[int, ...]) -> float:
            sizes = dict(zip(axes, point, strict=True))
            return aligned(size * prod(int(sizes.get(e, e.const)) for e in extents))

        grid = tuple(axis_sizes(axis, self.candidates) for axis in axes)
        values = np.array([bytes_at(point) for point in product(*grid)], dtype=float)
        shape = tuple(len(points) for points in grid)
        return Cost(name, axes, grid, values.reshape(shape), gate=self._gates.get(name, ""))

    def _tabulated(self, site: Site, number: Callable[[CKernel], float]) -> Cost:
        """A number of a kernel over its widths, from the kernels that are also measured."""
        axes, coarse = site.axes, measured_points(site, self.candidates)
        grid = tuple(axis_sizes(axis, self.candidates) for axis in axes)
        known = np.array([number(self._kernel(site, point)) for point in product(*coarse)], float)
        known = known.reshape(tuple(len(points) for points in coarse))
        values = [multilinear(coarse, known, point) for point in product(*grid)]
        shape = tuple(len(points) for points in grid)
        name = site.call.nodes[0]
        return Cost(name, axes, grid, np.array(values).reshape(shape), gate=site.branch)

    def _kernel(self, site: Site, point: tuple[int, ...] | None) -> CKernel:
        workload = site.call.workload if point is None else site.sample(point)
        if workload not in self.made:
            self.made[workload] = kernel_of(workload, self.target)
        return self.made[workload]


def _constant_bytes(kernel: CKernel) -> float:
    return sum(array.nbytes for array in kernel.constants)
