"""Where the layers of a network read the units of each group.

In: a `Program` and its `Coupling`. Out: `Read`s by group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwprune.coupling import Coupling
from hwprune.program import Program
from hwprune.recover.layers import Layer, all_layers
from hwprune.score.evidence import Read


def find_reads(program: Program, coupling: Coupling) -> dict[str, tuple[Read, ...]]:
    """The reads of every group; the outputs of the layers that make its units if none reads them.

    Groups that no layer reads or makes are not listed.
    """
    inputs: dict[str, list[Read]] = {}
    outputs: dict[str, list[Read]] = {}
    for layer in all_layers(program.module.graph):
        value: Any = layer.node.args[0]
        made = _units(coupling, layer, layer.node.name)
        for name, (dim, index) in _units(coupling, layer, value.name).items():
            passes = layer.groups > 1 and name in made
            inputs.setdefault(name, []).append(Read(layer, index, dim, passes=passes))
        for name, (dim, index) in made.items():
            outputs.setdefault(name, []).append(Read(layer, index, dim, output=True))
    return {
        name: tuple(inputs.get(name) or outputs[name])
        for name in (g.name for g in coupling.groups)
        if name in inputs or name in outputs
    }


def _units(coupling: Coupling, layer: Layer, value: str) -> dict[str, tuple[int, np.ndarray]]:
    """By group: the channel dimension of a layer's input or output, and each unit's positions."""
    ndim = len(coupling.shapes.get(value, ()))
    dim = ndim - 1 - layer.spatial
    axis = coupling.axes.get((value, dim))
    if axis is None or dim < 0:
        return {}
    found = {}
    at = np.flatnonzero(axis.units >= 0)
    groups, positions = (u[axis.units[at]] for u in (coupling.unit_group, coupling.unit_position))
    for number in np.unique(groups):
        group, mine = coupling.groups[number], groups == number
        counts = np.bincount(positions[mine], minlength=group.width)
        if counts.min() == counts.max():
            order = np.argsort(positions[mine], kind="stable")
            found[group.name] = (dim, at[mine][order].reshape(group.width, -1))
    return found
