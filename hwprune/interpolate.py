"""Interpolation inside measured bounds, and the choice of points that are worth measuring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POINTS = {1: 5, 2: 4}  # measured points per axis, by the number of axes
APART = 2.0  # times the largest gap before it
SUM_POINTS = 9  # tabulated sizes of an axis that is a sum of several groups


def multilinear(grid: Sequence[np.ndarray], values: np.ndarray, point: Sequence[float]) -> float:
    """The value at a point inside the grid (ascending sizes per axis), linear between points.

    Raises ValueError outside the grid.
    """
    for sizes, size in zip(grid, point, strict=True):
        if not sizes[0] <= size <= sizes[-1]:
            raise ValueError(f"{size} lies outside [{sizes[0]}, {sizes[-1]}]")
        right = int(np.searchsorted(sizes, size))
        if sizes[right] == size:
            values = values[right]
            continue
        share = (size - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
        values = (1 - share) * values[right - 1] + share * values[right]
    return float(values)


def sparse_points(sizes: np.ndarray, axes: int) -> np.ndarray:
    """A few of an axis's sizes, evenly spread, with both ends; all of them if they are few.

    A last size that stands apart from the others is taken besides.
    """
    most = POINTS[axes]
    if len(sizes) <= most:
        return sizes
    gaps = np.diff(sizes)
    if gaps[-1] > APART * gaps[:-1].max():
        return np.append(sparse_points(sizes[:-1], axes), sizes[-1])
    wanted = np.linspace(sizes[0], sizes[-1], most)
    nearest = np.abs(sizes[:, None] - wanted[None, :]).argmin(axis=0)
    return sizes[np.unique(nearest)]


def spread(low: int, high: int, step: int = 1) -> np.ndarray:
    """Sizes from `low` to `high`, both included, the inner ones multiples of `step`."""
    inner = np.linspace(low, high, SUM_POINTS)[1:-1] // step * step
    kept = {int(size) for size in inner if low < size < high}
    return np.array(sorted({low, high, *kept}))
