"""Connected components of labels under unions: what tracing, probing and solving all ask for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from hwprune.rules.engine import Edges


def components(count: int, edges: Sequence[Edges]) -> np.ndarray:
    """The component of every label, numbered from 0 without gaps: (count,) int64."""
    left = np.concatenate([np.zeros(0, np.int64), *(a for a, _ in edges)])
    right = np.concatenate([np.zeros(0, np.int64), *(b for _, b in edges)])
    graph = coo_matrix((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    return np.asarray(component, np.int64)
