"""A second tracing, where the first found labels that are one channel: those of a head.

In: a `Tracer` that has run. Out: one to run anew, whose parameters carry merged labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwprune.rules.components import components
from hwprune.rules.engine import Edges, Tracer


def merging(tracer: Tracer) -> Tracer | None:
    """A tracer that starts with merged labels being one; None if they were already."""
    if not tracer.merges:
        return None
    one = _first_labels(tracer.count, tracer.merges)
    changed = False
    parameters = {}
    for key, (name, axes) in tracer.parameters.items():
        found = tuple(None if v is None else one[v] for v in axes)
        changed |= any(
            v is not None and w is not None and not np.array_equal(v, w)
            for v, w in zip(axes, found, strict=True)
        )
        parameters[key] = name, found
    if not changed:
        return None
    return Tracer(
        tracer.module,
        forms=tracer.forms,
        parameters=parameters,
        aliases=tracer.aliases,
        count=tracer.count,
    )


def _first_labels(count: int, edges: Sequence[Edges]) -> np.ndarray:
    """The first label of the connected component of every label: (count,) int64."""
    _, first, inverse = np.unique(components(count, edges), return_index=True, return_inverse=True)
    return np.asarray(first[inverse.reshape(-1)], np.int64)
