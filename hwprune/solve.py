"""From traced labels to units: connected components, dense boxes, grouped convolutions.

Input: a `Tracer` that has run over a graph. Output: `Units`, a partition of its labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwprune.forms import AUTO, GROUPS
from hwprune.rules.components import components
from hwprune.rules.engine import Choice, Edges, Freeze, Tracer, varying


@dataclass(frozen=True)
class Units:
    """A partition of the labels: `component[label]`, and which components must stay."""

    component: np.ndarray
    stays: np.ndarray

    def of(self, labels: np.ndarray) -> np.ndarray:
        """The component of each label, -1 where it must stay."""
        found = self.component[labels]
        return np.where(self.stays[found], -1, found)

    def removable(self, axes: Sequence[np.ndarray]) -> int:
        """How many components can be removed without leaving one of these axes empty."""
        stays = self.stays.copy()
        for labels in axes:
            found = self.component[labels]
            if bool((found == found[0]).all()):
                stays[found[0]] = True
        return int((~stays).sum())


@dataclass(frozen=True)
class Solution:
    """The units, all that freezes labels, and the labels that statistics of norms run over."""

    units: Units
    freezes: list[Freeze]
    statistics: list[np.ndarray]


def joint_factors(tracer: Tracer) -> list[np.ndarray]:
    """The distinct label arrays that vary over more than one dimension."""
    found: dict[bytes, np.ndarray] = {}
    for value in tracer.values.values():
        for factors in value if isinstance(value, list) else [value]:
            for factor in factors:
                if len(varying(factor)) > 1:
                    found[str(factor.shape).encode() + factor.tobytes()] = factor
    return list(found.values())


def partition(count: int, edges: Sequence[Edges], frozen: Sequence[np.ndarray]) -> Units:
    """The connected components of labels under unions."""
    component = components(count, edges)
    stays = np.zeros(component.max(initial=-1) + 1, dtype=bool)
    for labels in frozen:
        stays[component[labels]] = True
    return Units(component, stays)


def dense_boxes(tracer: Tracer, edges: list[Edges], frozen: list[np.ndarray]) -> Units:
    """Unite until every value varies over one dimension at a time; extends `edges`."""
    joints = joint_factors(tracer)
    while True:
        units = partition(tracer.count, edges, frozen)
        added = [e for f in joints for e in _flatten(f, units.of(f))]
        if not added:
            return units
        edges.extend(added)


def _flatten(factor: np.ndarray, found: np.ndarray) -> list[Edges]:
    """Unions that leave one dimension for a joint factor to vary over, the most choice first."""
    dims = [d for d in varying(found) if bool((found != found.take([0], axis=d)).any())]
    if len(dims) < 2:
        return []
    best = max(dims, key=lambda d: (_choice(found, d), d))
    lines = np.moveaxis(factor, best, 0).reshape(factor.shape[best], -1)
    first = np.broadcast_to(lines[:, :1], lines.shape)
    return [(first.ravel(), lines.ravel())]


def _choice(found: np.ndarray, dim: int) -> int:
    """How many units would be left if each line along `dim` became one."""
    lines = np.moveaxis(found, dim, 0).reshape(found.shape[dim], -1)
    names, inverse = np.unique(lines, return_inverse=True)
    inverse = inverse.reshape(lines.shape)
    rows = np.broadcast_to(np.arange(len(lines))[:, None], lines.shape).ravel()
    component = components(len(lines) + len(names), [(rows, len(lines) + inverse.ravel())])
    stuck = component[len(lines) + np.flatnonzero(names < 0)]
    return int(component.max() + 1 - len(np.unique(stuck)))


def choose(tracer: Tracer) -> Solution:
    """The partition with the better form of every choice of groups that the options leave open."""

    def attempt(by_offset: set[int]) -> Solution:
        edges, freezes = list(tracer.edges), list(tracer.freezes)
        for i, choice in enumerate(tracer.choices):
            edges += choice.offsets if i in by_offset else choice.wholes
            if i not in by_offset and choice.whole_only.size:
                freezes.append(Freeze(choice.whole_only, choice.node, choice.reason))
        statistics = [c.statistics for i, c in enumerate(tracer.choices) if i in by_offset]
        units = dense_boxes(tracer, edges, [f.labels for f in freezes])
        return Solution(units, freezes, [*tracer.statistics, *statistics])

    asked = [getattr(tracer.forms, c.form) for c in tracer.choices]
    axes = [a for _, all_axes in tracer.parameters.values() for a in all_axes if a is not None]
    by_offset = {i for i, word in enumerate(asked) if word not in (AUTO, GROUPS)}
    best = attempt(by_offset)
    open_ = [(i, c) for i, c in enumerate(tracer.choices) if asked[i] == AUTO]
    for trial in _trials([(i, c) for i, c in open_ if _may_gain(c, best.units)]):
        changed = by_offset | trial
        if changed != by_offset:
            other = attempt(changed)
            if other.units.removable(axes) > best.units.removable(axes):
                best, by_offset = other, changed
    return best


def _trials(candidates: list[tuple[int, Choice]]) -> list[set[int]]:
    """Which choices to try by offset, in turn: many together, a few alone, all norms together.

    The norms along one stream of channels gain only together.
    """
    numbers = [i for i, _ in candidates]
    norms = {i for i, c in candidates if c.statistics.size}
    together = [set(numbers)] if len(numbers) > 8 else []
    alone = [{i} for i in numbers[:8]]
    return [*together, *alone, *([norms] if norms not in together else [])]


def _may_gain(choice: Choice, units: Units) -> bool:
    """Whether offsets would leave more units on the output than whole groups do."""
    found = units.of(choice.output)
    return len(np.unique(found[found >= 0])) < choice.per_group
