"""What a choice of widths costs: kernels (latency), multiply-accumulates and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hwprune.couple import Extent


@dataclass(frozen=True)
class Cost:
    """A tabulated cost over zero, one or two extents; linear between grid points.

    `axes[i]` is an Extent (a channel count), `grid[i]` its ascending sampled values, and
    `values` has shape `tuple(len(g) for g in grid)` (a scalar array where nothing varies).
    `count` identical launches are summed. Unit of `values`: that of the resource (us, MACs, …).
    """

    name: str
    axes: tuple[Extent, ...]
    grid: tuple[np.ndarray, ...]
    values: np.ndarray
    count: int = 1

    def at(self, widths: Mapping[str, int]) -> float:
        """The exact (re-priced) cost at these widths: multilinear inside the grid.

        Raises TableError outside the grid.
        """
        raise NotImplementedError
