"""Operators of an int8 network that run in float32: named, and held to PyTorch each by itself.

In: an `IntegerGraph`. Out: the same graph cut after every such operator, so that one program shows
that each of them is within TOLERANCE of PyTorch and all others equal the reference bit for bit; and
how far the outputs of the whole network may lie from the reference's.

A value that a float32 operator makes may differ in its last digits, with the order of its sums or
the library's functions, and be rounded to the next integer. In the whole network that goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hwprune.mcu_vectors import TOLERANCE, Vectors
from hwprune.quantize import graph as ops
from hwprune.quantize.graph import IntegerGraph
from hwprune.quantize.reference import Altered, run, run_all

_GIVEN = "{}_given"  # what readers of a float32 result read in a cut graph


def fallbacks(graph: IntegerGraph) -> tuple[ops.Float, ...]:
    """The operators that run in float32."""
    return tuple(op for op in graph.operators if isinstance(op, ops.Float))


def facts(graph: IntegerGraph) -> list[dict[str, Any]]:
    """The operators that run in float32, as report.json has them."""
    return [
        {"name": op.name, "operator": op.operator, "where": op.where, "tolerance": TOLERANCE}
        for op in fallbacks(graph)
    ]


def cut(graph: IntegerGraph) -> IntegerGraph:
    """What float32 operators make becomes outputs; their readers read inputs in its place."""
    made = [op.output for op in fallbacks(graph)]
    given = {name: _GIVEN.format(name) for name in made}
    tensors = [replace(graph.by_name[name], name=given[name]) for name in made]
    operators = [
        replace(op, inputs=tuple(given.get(name, name) for name in op.inputs))
        for op in graph.operators
    ]
    return IntegerGraph(
        graph.name,
        (*graph.tensors, *tensors),
        tuple(operators),
        (*graph.inputs, *given.values()),
        (*graph.outputs, *made),
    )


def cut_vectors(graph: IntegerGraph, inputs: Sequence[np.ndarray]) -> Vectors:
    """Vectors of the cut graph: float32 results within TOLERANCE, all others bit for bit."""
    values = run_all(graph, inputs)
    made = [values[op.output].reshape(len(inputs[0]), -1) for op in fallbacks(graph)]
    outputs = [values[name] for name in graph.outputs]
    return Vectors((*inputs, *made), (*outputs, *made), TOLERANCE)


def steps_apart(graph: IntegerGraph, inputs: Sequence[np.ndarray]) -> int:
    """How many steps int8 outputs may lie from the reference's; 0 without float32 operators.

    As many as they move where all float32 results are off by TOLERANCE (up, down, at random), and
    one.
    """
    if not fallbacks(graph):
        return 0
    plain, rng, moved = run(graph, inputs), np.random.default_rng(0), 0
    for signs in ([1.0], [-1.0], [-1.0, 1.0]):
        for a, b in zip(
            plain, run(graph, inputs, _shifting(signs, rng, len(inputs[0]))), strict=True
        ):
            moved = max(moved, int(np.abs(a.astype(np.int32) - b).max(initial=0)))
    return moved + 1


def _shifting(signs: Sequence[float], rng: np.random.Generator, count: int) -> Altered:
    """Float32 results moved by TOLERANCE of their largest number, by signs drawn from these.

    Results are those of `count` inputs, one after the other.
    """

    def shifted(op: ops.Operator, x: np.ndarray) -> np.ndarray:
        if not isinstance(op, ops.Float):
            return x
        rows = x.reshape(count, -1)
        top = np.abs(rows).max(1, keepdims=True)
        moved: np.ndarray = rows + rng.choice(signs, rows.shape) * TOLERANCE * top
        return moved.astype(np.float32).reshape(x.shape)

    return shifted
