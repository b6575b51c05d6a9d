"""From units to `Group`s: which units have the same sites, what they are called, what stays.

Input: a `Tracer` that has run over a graph. Output: a `Coupling`.
"""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from hwprune.coupling import Axis, Coupling, Frozen, Group, Site
from hwprune.program import get_tensor, source_line, tensor_value
from hwprune.rules.engine import Freeze, Tracer, varying
from hwprune.solve import Units, choose

_Axes = dict[tuple[str, int], np.ndarray]
_SiteAxes = dict[Site, np.ndarray]


def build_coupling(tracer: Tracer) -> Coupling:
    """Solve the traced constraints and describe the result by groups and extents."""
    solution = choose(tracer)
    labels = _node_axes(tracer, solution.units)
    site_labels = _parameter_axes(tracer)
    order = _parameter_order(tracer)
    units, freezes = _keep_axes(tracer, solution.units, solution.freezes, labels, site_labels)
    nodes = {key: units.of(v) for key, v in labels.items()}
    sites = {site: units.of(v) for site, v in site_labels.items()}
    members = _same_sites(units, [*nodes.values(), *sites.values()])
    groups, components = _groups(members, sites, order)
    groups = _through_statistics(groups, components, solution.statistics, units)
    number = np.full(len(units.stays) + 1, -1, np.int64)
    number[np.concatenate([*components, np.zeros(0, np.int64)])] = np.arange(
        sum(map(len, components))
    )
    widths = [g.width for g in groups]
    return Coupling(
        groups=groups,
        frozen=_frozen(units, freezes, site_labels, order),
        shapes=_shapes(tracer),
        axes={k: Axis(number[v]) for k, v in nodes.items() if (v >= 0).any()},
        parameter_axes={k: Axis(number[v]) for k, v in sites.items() if (v >= 0).any()},
        parameter_shapes={
            name: tuple(get_tensor(tracer.module, name).shape)
            for name, _ in tracer.parameters.values()
        },
        unit_group=np.repeat(np.arange(len(groups)), widths).astype(np.int64),
        unit_position=np.concatenate([*map(np.arange, widths), np.zeros(0)]).astype(np.int64),
        aliases=dict(tracer.aliases),
        forms=tracer.forms,
    )


def _shapes(tracer: Tracer) -> dict[str, tuple[int, ...]]:
    values = {n.name: tensor_value(n) for n in tracer.module.graph.nodes}
    return {name: tuple(v.shape) for name, v in values.items() if v is not None}


def _node_axes(tracer: Tracer, units: Units) -> _Axes:
    """The labels along every dimension of every value that any varies over."""
    result: _Axes = {}
    for node, value in tracer.values.items():
        if isinstance(value, list):
            continue
        for factor in value:
            dims = varying(factor)
            if len(dims) > 1:  # a joint factor: solved, it varies over one dimension or is one unit
                found = units.of(factor)
                solved = tuple(d for d in dims if bool((found != found.take([0], axis=d)).any()))
                assert len(solved) < 2, node
                dims = solved or dims[:1]
            for dim in dims:
                result[node.name, dim] = np.moveaxis(factor, dim, 0).reshape(factor.shape[dim], -1)[
                    :, 0
                ]
    return result


def _parameter_axes(tracer: Tracer) -> _SiteAxes:
    return {
        Site(name, dim): labels
        for name, axes in tracer.parameters.values()
        for dim, labels in enumerate(axes)
        if labels is not None
    }


def _parameter_order(tracer: Tracer) -> dict[str, tuple[int, fx.Node]]:
    """Each parameter's place in the order of first use, and the node that uses it."""
    order: dict[str, tuple[int, fx.Node]] = {}
    for node in tracer.module.graph.nodes:
        if node.op in ("get_attr", "placeholder"):
            continue
        for arg in node.all_input_nodes:
            name = tracer.aliases.get(str(arg.target)) if arg.op == "get_attr" else None
            if name is not None and name not in order:
                order[name] = (len(order), node)
    for name, _ in tracer.parameters.values():
        order.setdefault(name, (len(order), next(iter(tracer.module.graph.nodes))))
    return order


def _keep_axes(
    tracer: Tracer, units: Units, freezes: list[Freeze], nodes: _Axes, sites: _SiteAxes
) -> tuple[Units, list[Freeze]]:
    """Units without which a dimension would be empty, or that no parameter holds, stay."""
    stays = units.stays.copy()
    owned = np.zeros(len(stays), dtype=bool)
    for labels in sites.values():
        owned[units.component[labels]] = True
    stays |= ~owned
    added: list[Freeze] = []
    places = {n.name: n for n in tracer.module.graph.nodes}
    users = {name: node for name, (_, node) in _parameter_order(tracer).items()}
    axes = [(places[name], v) for (name, _), v in nodes.items()]
    for node, labels in [*axes, *((users[s.parameter], v) for s, v in sites.items())]:
        component = units.component[labels]
        if not stays[component[0]] and bool((component == component[0]).all()):
            added.append(Freeze(labels[:1], node, "a dimension would be left empty"))
    for freeze in added:
        stays[units.component[freeze.labels]] = True
    return replace(units, stays=stays), [*freezes, *added]


def _same_sites(units: Units, axes: list[np.ndarray]) -> np.ndarray:
    """A signature per component: equal for units that occur equally often on every axis."""
    random = np.random.default_rng(0)
    size = len(units.stays)
    signature = np.zeros((size, 2), np.uint64)
    distinct = {v.tobytes(): v for v in axes}
    for found in distinct.values():
        present, counts = np.unique(found[found >= 0], return_counts=True)
        weight = random.integers(0, 2**64 - 1, (1, 2), np.uint64)
        signature[present] += counts[:, None].astype(np.uint64) * weight
    _, inverse = np.unique(signature, axis=0, return_inverse=True)
    return np.where(units.stays, -1, inverse.reshape(-1))


def _groups(
    members: np.ndarray, sites: _SiteAxes, order: Mapping[str, tuple[int, fx.Node]]
) -> tuple[tuple[Group, ...], list[np.ndarray]]:
    """Groups in the order of the graph, and the components of each, one per unit."""
    found: dict[int, dict[Site, np.ndarray]] = defaultdict(dict)
    for site in sorted(sites, key=lambda s: (order[s.parameter][0], s.dim)):
        component = sites[site]
        alive = members[component[component >= 0]]
        same = bool(len(alive)) and bool((alive == alive[0]).all())
        for group in alive[:1] if same else np.unique(alive):
            found[int(group)][site] = component
    groups: list[Group] = []
    components: list[np.ndarray] = []
    names: Counter[str] = Counter()
    owner = np.full(len(members) + 1, -1, np.int64)
    for group, axes in sorted(found.items(), key=lambda item: _rank(item, order, members)):
        first = next(iter(axes.values()))
        mine = first[(first >= 0) & (members[np.maximum(first, 0)] == group)]
        units = mine[np.sort(np.unique(mine, return_index=True)[1])]
        owner[units] = np.arange(len(units))
        index = {site: _positions(owner[component], len(units)) for site, component in axes.items()}
        owner[units] = -1
        name = next(iter(axes)).parameter
        name = name.rpartition(".")[0] or name
        names[name] += 1
        unique = name if names[name] == 1 else f"{name}#{names[name]}"
        groups.append(Group(unique, len(units), index))
        components.append(units)
    return tuple(groups), components


def _through_statistics(
    groups: tuple[Group, ...],
    components: list[np.ndarray],
    statistics: list[np.ndarray],
    units: Units,
) -> tuple[Group, ...]:
    """The groups, marked where the statistics of a normalisation run over their units."""
    over = np.concatenate([*(units.component[v] for v in statistics), np.zeros(0, np.int64)])
    return tuple(
        replace(g, through_norm_statistics=bool(np.isin(c, over).any()))
        for g, c in zip(groups, components, strict=True)
    )


def _rank(
    item: tuple[int, dict[Site, np.ndarray]],
    order: Mapping[str, tuple[int, fx.Node]],
    members: np.ndarray,
) -> tuple[int, int, int]:
    group, axes = item
    site, component = next(iter(axes.items()))
    inside = (component >= 0) & (members[np.maximum(component, 0)] == group)
    return order[site.parameter][0], site.dim, int(np.flatnonzero(inside)[0])


def _positions(owner: np.ndarray, width: int) -> np.ndarray:
    """(width, k): where each unit lies on an axis, ascending; `owner` is -1 where none does."""
    positions = np.flatnonzero(owner >= 0)
    ranked = positions[np.argsort(owner[positions], kind="stable")]
    return ranked.reshape(width, -1).astype(np.int64)


def _frozen(
    units: Units,
    freezes: list[Freeze],
    sites: _SiteAxes,
    order: Mapping[str, tuple[int, fx.Node]],
) -> tuple[Frozen, ...]:
    """Components that must stay, by where they lie and the first reason why."""
    reason = np.full(len(units.stays), -1, np.int64)
    for number, freeze in enumerate(freezes):
        component = np.unique(units.component[freeze.labels])
        fresh = component[reason[component] < 0]
        reason[fresh] = number
    result: list[Frozen] = []
    for number, listed_sites, width in _same_reason(units, reason, sites, order):
        if number < 0 or not freezes[number].reason:
            continue
        node = freezes[number].node
        call: Any = node.args[0] if node.target is operator.getitem else node
        name = listed_sites[0].parameter
        text = f"{call.target}: {freezes[number].reason}" if node.op == "call_function" else ""
        result.append(
            Frozen(
                name=name.rpartition(".")[0] or name,
                width=width,
                sites=listed_sites,
                reason=text or freezes[number].reason,
                node=node.name,
                source=source_line(node),
            )
        )
    return tuple(result)


def _same_reason(
    units: Units,
    reason: np.ndarray,
    sites: _SiteAxes,
    order: Mapping[str, tuple[int, fx.Node]],
) -> list[tuple[int, tuple[Site, ...], int]]:
    """(reason, sites, how many) of the components that must stay, in the order of the sites."""
    listed = sorted(sites, key=lambda s: (order[s.parameter][0], s.dim))
    axes = [units.component[sites[s]] for s in listed]
    found = [np.unique(c[units.stays[c]]) for c in axes]
    random = np.random.default_rng(0)
    signature = np.zeros((len(units.stays), 2), np.uint64)
    signature[:, 1] = reason + 1
    for components in found:
        signature[components, 0] += random.integers(0, 2**64 - 1, dtype=np.uint64)
    members = np.unique(np.concatenate([*found, np.zeros(0, np.int64)]))
    _, first, widths = np.unique(signature[members], axis=0, return_index=True, return_counts=True)
    place = np.full(len(units.stays), -1)
    place[members[first]] = np.arange(len(first))
    where: list[list[int]] = [[] for _ in first]
    for number, components in enumerate(found):
        for group in place[components][place[components] >= 0]:
            where[group].append(number)
    ranked = sorted(range(len(first)), key=lambda g: (where[g][0], first[g]))
    return [
        (int(reason[members[first[g]]]), tuple(listed[i] for i in where[g]), int(widths[g]))
        for g in ranked
    ]
