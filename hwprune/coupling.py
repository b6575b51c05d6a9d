"""`Coupling`: the groups of a program, what is frozen, and every size as a function of widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hwprune.forms import USUAL, Forms


@dataclass(frozen=True, order=True)
class Site:
    """One axis of one parameter or buffer (dotted name)."""

    parameter: str
    dim: int


@dataclass(frozen=True)
class Extent:
    """A size that depends on the plan: const + sum of coefficient x kept width of a group."""

    const: int
    terms: tuple[tuple[str, int], ...] = ()

    def at(self, widths: Mapping[str, int]) -> int:
        """The size when each group keeps `widths[group]` units."""
        return self.const + sum(c * widths[g] for g, c in self.terms)


@dataclass(frozen=True)
class Group:
    """Units that may be removed independently, all with the same sites.

    `index[site]` is (width, k) int64: the k indices that each unit owns on that axis.
    `name` is the first site's parameter without its last component ("layer1.0.conv1"),
    unique among groups.
    """

    name: str
    width: int
    index: Mapping[Site, np.ndarray]
    through_norm_statistics: bool = False  # layer/group norm statistics run over these units

    @property
    def sites(self) -> tuple[Site, ...]:
        """The parameter axes that shrink with this group, sorted."""
        return tuple(sorted(self.index))


@dataclass(frozen=True)
class Frozen:
    """Units that must stay, and why (op, graph node, the user's source line)."""

    name: str
    width: int
    sites: tuple[Site, ...]
    reason: str
    node: str
    source: str


@dataclass(frozen=True)
class Axis:
    """One dimension of a value: for each position the unit it belongs to, or -1 (always kept)."""

    units: np.ndarray


@dataclass(frozen=True)
class Branch:
    """A residual branch f that may be removed whole: the sum x + f(x) then is x.

    `add` is the graph node of the sum, `output` that of f(x). `nodes` compute nothing else,
    `parameters` are read by nothing else, and all units of `groups` lie within.
    """

    name: str
    add: str
    output: str
    nodes: frozenset[str]
    parameters: frozenset[str]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Coupling:
    """The groups of a program, what is frozen, and how every size depends on the groups.

    Queries go by FX node name; they hold for the program and its specialised form alike.
    Units are numbered over all groups: `unit_group[u]` and `unit_position[u]` say which.
    Branches within others come before them. A branch is like a group of width one: it has a name
    of its own, and keeps one or none.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    shapes: Mapping[str, tuple[int, ...]]
    axes: Mapping[tuple[str, int], Axis]
    parameter_axes: Mapping[Site, Axis]
    parameter_shapes: Mapping[str, tuple[int, ...]]
    unit_group: np.ndarray
    unit_position: np.ndarray
    aliases: Mapping[str, str] = field(default_factory=dict)
    forms: Forms = USUAL
    branches: tuple[Branch, ...] = ()

    def group(self, name: str) -> Group:
        """The group of this name; KeyError if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    @property
    def full(self) -> dict[str, int]:
        """The widths of the original: every group whole, every branch there."""
        return {g.name: g.width for g in self.groups} | {b.name: 1 for b in self.branches}

    def branch_of(self, node_name: str) -> str:
        """The innermost branch that a node, or the sum, goes with; empty if there is none."""
        inside = (b.name for b in self.branches if node_name in b.nodes or node_name == b.add)
        return next(inside, "")

    def branch_of_parameter(self, name: str) -> str:
        """The innermost branch that alone reads a parameter; empty if there is none."""
        return next((b.name for b in self.branches if name in b.parameters), "")

    @property
    def gates(self) -> dict[str, str]:
        """The innermost branch that each group or branch lies in, where there is one."""
        gates: dict[str, str] = {}
        for branch in self.branches:
            inner = [b.name for b in self.branches if b.add in branch.nodes]
            for name in (*branch.groups, *inner):
                gates.setdefault(name, branch.name)
        return gates

    def removed(self, kept: Mapping[str, Sequence[int]]) -> tuple[Branch, ...]:
        """The branches of which nothing is kept."""
        return tuple(b for b in self.branches if b.name in kept and not kept[b.name])

    def extent(self, node_name: str, dim: int) -> Extent:
        """How long dimension `dim` of a tensor node is, as a function of the kept widths.

        Sizes of the batch are those of the program's example inputs. KeyError for nodes that
        are no single tensor.
        """
        shape = self.shapes[node_name]
        dim %= max(len(shape), 1)
        return self._extent(self.axes.get((node_name, dim)), shape[dim])

    def parameter_extents(self, parameter_name: str) -> tuple[Extent, ...]:
        """The extents of all dimensions of a parameter or buffer."""
        name = self.aliases.get(parameter_name, parameter_name)
        shape = self.parameter_shapes[name]
        return tuple(
            self._extent(self.parameter_axes.get(Site(name, d)), size)
            for d, size in enumerate(shape)
        )

    def unit_mask(self, kept: Mapping[str, Sequence[int]]) -> np.ndarray:
        """Whether each unit is kept; groups that `kept` does not name are kept whole.

        So are those that keep nothing: they lie in a branch that is removed with all its nodes.
        """
        mask = np.ones(len(self.unit_group), dtype=bool)
        for position, group in enumerate(self.groups):
            if len(kept.get(group.name, ())):
                members = np.flatnonzero(self.unit_group == position)
                chosen = np.isin(self.unit_position[members], np.asarray(kept[group.name]))
                mask[members] = chosen
        return mask

    def kept(self, node_name: str, dim: int, mask: np.ndarray) -> np.ndarray | None:
        """Which positions of a value's dimension stay under a `unit_mask`; None: all of them."""
        return _alive(self.axes.get((node_name, dim)), mask)

    def parameter_kept(self, name: str, dim: int, mask: np.ndarray) -> np.ndarray | None:
        """Which positions of a parameter's dimension stay under a `unit_mask`; None: all."""
        return _alive(self.parameter_axes.get(Site(self.aliases.get(name, name), dim)), mask)

    def _extent(self, axis: Axis | None, size: int) -> Extent:
        if axis is None:
            return Extent(size)
        alive = axis.units[axis.units >= 0]
        counts = np.bincount(self.unit_group[alive], minlength=len(self.groups))
        terms = tuple(
            (self.groups[g].name, int(counts[g]) // self.groups[g].width)
            for g in np.flatnonzero(counts)
        )
        return Extent(size - len(alive), terms)


def _alive(axis: Axis | None, mask: np.ndarray) -> np.ndarray | None:
    if axis is None:
        return None
    keep: np.ndarray = (axis.units < 0) | mask[np.maximum(axis.units, 0)]
    return keep
