"""Winograd's transforms for 3x3 filters: of weights (G), of input rows (B), of product rows (A).

Matrices of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), for tiles of
m = 2 and m = 4 outputs; interpolation points 0, 1, -1 (and 2, -2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwprune.lower.cpu.emit import Expr, const

G = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}


def input_transform(m: int, d: Sequence[Expr]) -> list[Expr]:
    """One row of the input transform: B applied to m + 2 values."""
    if m == 2:
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]
    two, four, five = const(2.0), const(4.0), const(5.0)
    even, odd = d[4] - four * d[2], d[3] - four * d[1]
    even2, odd2 = d[4] - d[2], two * (d[3] - d[1])
    return [
        four * d[0] - five * d[2] + d[4],
        even + odd,
        even - odd,
        even2 + odd2,
        even2 - odd2,
        four * d[1] - five * d[3] + d[5],
    ]


def output_transform(m: int, p: Sequence[Expr]) -> list[Expr]:
    """One row of the output transform: A applied to m + 2 products gives m values."""
    if m == 2:
        return [p[0] + p[1] + p[2], p[1] - p[2] - p[3]]
    two, four, eight = const(2.0), const(4.0), const(8.0)
    sum1, sum2, dif1, dif2 = p[1] + p[2], p[3] + p[4], p[1] - p[2], p[3] - p[4]
    return [
        p[0] + sum1 + sum2,
        dif1 + two * dif2,
        sum1 + four * sum2,
        dif1 + eight * dif2 + p[5],
    ]


def transform_weights(m: int, weight: np.ndarray) -> np.ndarray:
    """(O, I, 3, 3) -> ((m + 2)**2, O, I), computed in float64."""
    g = np.asarray(G[m], np.float64)
    full = np.einsum("ai,ocij,bj->aboc", g, np.asarray(weight, np.float64), g)
    return full.reshape(-1, *full.shape[2:])
