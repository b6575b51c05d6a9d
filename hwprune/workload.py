"""`Site`: a kernel of the network whose sizes are functions of the group widths.

In: the fused `Call`s of a network and its `Coupling`. Out: `Site`s that give the `Workload` for any
choice of widths, and the widths worth trying for a group.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import gcd
from typing import TYPE_CHECKING, Protocol

from hwprune.coupling import Extent, Group
from hwprune.errors import HwpruneError
from hwprune.lower.constants import CONSTANT
from hwprune.lower.spec import Call, TensorSpec, Workload
from hwprune.reshape import reshape_workload
from hwprune.target import Target

if TYPE_CHECKING:
    from hwprune.program import Program

Extents = tuple[Extent, ...]
_GROUPS = {f"conv{kind}{d}d": 6 for kind in ("", "_transpose") for d in (1, 2, 3)}  # their place
WORD = 4  # int8 channels
SMALL_WIDTH = 64  # channels; below this, half an aligned block is worth a candidate


class Couples(Protocol):
    """What this file needs of a `Coupling`."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The prunable groups."""

    def extent(self, node: str, dim: int) -> Extent:
        """The size of a dimension of a graph node's value."""

    def parameter_extents(self, name: str) -> tuple[Extent, ...]:
        """The sizes of a parameter's or buffer's dimensions."""

    def branch_of(self, node_name: str) -> str:
        """The innermost removable branch that a node goes with; empty if there is none."""

    def branch_of_parameter(self, name: str) -> str:
        """The innermost removable branch that alone reads a parameter; empty if there is none."""


@dataclass(frozen=True)
class Site:
    """A `Call` with an `Extent` for every dimension of its inputs, output and parameters.

    `dense` says that a size could not be followed: the kernel is then always priced at the
    original shapes, an upper bound. `branch` names the branch that it goes with, if any.
    """

    call: Call
    inputs: tuple[Extents, ...]
    output: Extents
    params: tuple[Extents, ...]
    dense: bool = False
    branch: str = ""

    def runs(self, widths: Mapping[str, int]) -> bool:
        """Whether the kernel is there at all: its branch is not removed."""
        return not self.branch or bool(widths[self.branch])

    def workload(self, widths: Mapping[str, int]) -> Workload:
        """The kernel when each group keeps `widths[group]` units."""
        if self.dense:
            return self.call.workload
        return self._shaped(lambda extent: extent.at(widths))

    @property
    def axes(self) -> Extents:
        """The zero, one or two sizes that this kernel's cost is tabulated over.

        Sizes that move together are one axis. Concatenations and slices have one: their output's.
        """
        return () if self.dense else tuple(_classes(self))[:2]

    def sample(self, values: Sequence[int]) -> Workload:
        """The kernel where the axes have these sizes.

        Sizes beyond the axes (a concatenation's parts) follow the first axis in proportion.
        """
        axes = self.axes
        if not axes:
            return self.call.workload
        sizes: dict[Extent, int] = {}
        full = _sizes(self)
        for extent, dense in full.items():
            axis, ratio = _follow(extent, axes, full)
            size = extent.const + ratio * (values[axis] - axes[axis].const)
            sizes[extent] = max(1, round(float(size))) if extent.terms else dense
        shaped = self._shaped(sizes.__getitem__)
        return _fill_concat(shaped) if shaped.op == "concat" else shaped

    def _shaped(self, size: Callable[[Extent], int]) -> Workload:
        return reshape_workload(
            self.call.workload,
            [tuple(map(size, extents)) for extents in self.inputs],
            tuple(map(size, self.output)),
            [tuple(map(size, extents)) for extents in self.params],
        )


def sites(calls: Sequence[Call], coupling: Couples, program: Program) -> tuple[Site, ...]:
    """One `Site` per call, in order.

    `program` is the folded, specialised program that the calls were fused from; `coupling` is of
    the captured program (the same node and parameter names).
    """
    shapes = {
        node.name: tuple(getattr(node.meta.get("val"), "shape", ()))
        for node in program.module.graph.nodes
    }
    full = {group.name: group.width for group in coupling.groups}
    known: dict[str, Extents] = {}
    found = []
    for call in calls:
        site = _site(call, _Follower(coupling, full, shapes, known))
        known.setdefault(_node(call.output), site.output)
        inside = [coupling.branch_of(n) for n in call.nodes or (_node(call.output),)]
        found.append(replace(site, branch=next(filter(None, inside), "")))
    return tuple(found)


def width_candidates(
    group: Group, coupling: Couples, target: Target, *, most: int = 24, width: int | None = None
) -> tuple[int, ...]:
    """Ascending widths worth trying for a group: an aligned grid, and the full width, or `width`.

    The grid has at most about `most` steps, and half an aligned block where the group is small
    (on microcontrollers, which read int8 channels by words, only if that is whole words).
    """
    channels = min((index.shape[1] for index in group.index.values()), default=1)
    width = group.width if width is None else width
    aligned = target.channel_alignment // gcd(target.channel_alignment, channels)
    fine = max(1, aligned // 2)
    step = aligned * -(-width // (aligned * most))
    grid = set(range(step, width, step))
    halves = target.kind != "mcu" or aligned % (2 * WORD) == 0
    if halves and width * channels < 2 * SMALL_WIDTH:
        grid |= set(range(fine, min(width, SMALL_WIDTH // channels + 1), fine))
    grid.add(min(aligned, width))
    return tuple(sorted({*grid, width}))


@dataclass(frozen=True)
class _Follower:
    """Finds the extents of values and parameters, or None where they cannot be followed."""

    coupling: Couples
    full: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]  # by node name, in the folded program
    known: Mapping[str, Extents]  # of values of earlier kernels that the coupling does not know

    def value(self, name: str, spec: TensorSpec) -> Extents | None:
        node = _node(name)
        if self.shapes.get(node, spec.shape) != spec.shape:
            return None
        try:
            found = tuple(self.coupling.extent(node, d) for d in range(len(spec.shape)))
        except (KeyError, IndexError, HwpruneError):
            found = self.known.get(node, ())
        return self._checked(found, spec)

    def parameter(self, name: str, spec: TensorSpec, output: Extents | None) -> Extents | None:
        try:
            found = tuple(self.coupling.parameter_extents(name))
        except (KeyError, IndexError, HwpruneError):
            made = self.value(name.removeprefix(CONSTANT), spec)  # computed of parameters
            found = made if made is not None and name.startswith(CONSTANT) else ()
        checked = self._checked(found, spec)
        if checked is None and len(spec.shape) == 1 and output is not None:
            axis = min(1, len(output) - 1) if len(output) != 3 else 2
            checked = self._checked((output[axis],), spec)  # a bias or scale made by folding
        return checked

    def _checked(self, found: Extents, spec: TensorSpec) -> Extents | None:
        """The extents with fixed sizes taken from the shape; None if they do not fit it."""
        if len(found) != len(spec.shape):
            return None
        pairs = list(zip(found, spec.shape, strict=True))
        if any(extent.terms and extent.at(self.full) != size for extent, size in pairs):
            return None
        return tuple(extent if extent.terms else Extent(size) for extent, size in pairs)


def _site(call: Call, follow: _Follower) -> Site:
    workload = call.workload
    pairs = zip(call.args, workload.inputs, strict=True)
    inputs = [follow.value(name, spec) for name, spec in pairs]
    output = follow.value(call.output, workload.output)
    if output is None and inputs and inputs[0] is not None:
        output = follow._checked(inputs[0], workload.output)  # elementwise, made by folding
    named = zip(call.params, workload.params, strict=True)
    params = [follow.parameter(name, spec, output) for name, spec in named]
    everything = [*inputs, output, *params]
    if any(extents is None for extents in everything):
        return _dense_site(call)
    site = Site(
        call,
        tuple(e for e in inputs if e is not None),
        output or (),
        tuple(e for e in params if e is not None),
    )
    return site if _derivable(site, follow.full) else _dense_site(call)


def _dense_site(call: Call) -> Site:
    """The site of a kernel whose sizes cannot be followed."""

    def fixed(spec: TensorSpec) -> Extents:
        return tuple(Extent(size) for size in spec.shape)

    work = call.workload
    inputs, params = tuple(map(fixed, work.inputs)), tuple(map(fixed, work.params))
    return Site(call, inputs, fixed(work.output), params, dense=True)


def _derivable(site: Site, full: Mapping[str, int]) -> bool:
    """Whether the kernel's attributes can be re-derived at other widths."""
    varies = any(e.terms for extents in (*site.inputs, site.output) for e in extents)
    if not varies:
        return True
    if site.call.workload.op == "aten" and len(_classes(site)) > 1 and not _any_sizes(site.call):
        return False  # which combinations of sizes it allows is not known
    try:
        return site.workload(full) == site.call.workload
    except HwpruneError:
        return False


def _any_sizes(call: Call) -> bool:
    """Whether an ATen call takes any number of inputs with any number of outputs."""
    packet = str(call.workload.attr("target")).split(".")[1]
    given, place = json.loads(str(call.workload.attr("args")))["args"], _GROUPS.get(packet)
    groups = given[place] if place is not None and len(given) > place else 1
    return packet in ("linear", "mm", "addmm") or (place is not None and groups == 1)


def _node(value: str) -> str:
    """The graph node of a value's name ("relu_3@plain" -> "relu_3")."""
    return value.split("@", 1)[0]


def _key(extent: Extent) -> tuple[tuple[str, int], ...]:
    """Equal exactly for extents that move in proportion."""
    divisor = gcd(*(c for _, c in extent.terms))
    return tuple(sorted((group, c // divisor) for group, c in extent.terms))


def _classes(site: Site) -> list[Extent]:
    """One extent of each class that moves together, the cost's axes first."""
    order = [*site.inputs, site.output, *site.params]
    if site.call.workload.op in ("concat", "slice"):
        order = [site.output]  # the input's sizes are not independent of it
    first: dict[tuple[tuple[str, int], ...], Extent] = {}
    for extents in order:
        for extent in extents:
            if extent.terms:
                first.setdefault(_key(extent), extent)
    return list(first.values())


def _sizes(site: Site) -> dict[Extent, int]:
    """Every extent of a site with its size in the original network."""
    work = site.call.workload
    specs = [*work.inputs, work.output, *work.params]
    rows = [*site.inputs, site.output, *site.params]
    return {
        extent: size
        for spec, extents in zip(specs, rows, strict=True)
        for extent, size in zip(extents, spec.shape, strict=True)
    }


def _follow(extent: Extent, axes: Extents, full: Mapping[Extent, int]) -> tuple[int, Fraction]:
    """(the axis that an extent follows, by which ratio)."""
    if not extent.terms:
        return 0, Fraction(0)
    for i, axis in enumerate(axes):
        if _key(axis) == _key(extent):
            return i, Fraction(dict(extent.terms)[axis.terms[0][0]], axis.terms[0][1])
    return 0, Fraction(full[extent] - extent.const, full[axes[0]] - axes[0].const)


def _fill_concat(workload: Workload) -> Workload:
    """Adjust the widest input of a concatenation so that the parts add up to the output."""
    axis = workload.attr("axis")
    parts = [spec.shape[axis] for spec in workload.inputs]
    widest = max(range(len(parts)), key=parts.__getitem__)
    parts[widest] += workload.output.shape[axis] - sum(parts)
    inputs = [
        replace(spec, shape=(*spec.shape[:axis], part, *spec.shape[axis + 1 :]))
        for spec, part in zip(workload.inputs, parts, strict=True)
    ]
    return replace(workload, inputs=tuple(inputs))
