"""The range of every value on calibration data, by minimum and maximum, percentile or least error.

In: a graph module, batches, and which of its values share a range. Out: (low, high) of each.
Histograms take a second pass over the batches, when the extremes are known.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, fx

from hwprune.errors import HwpruneError

MINMAX, PERCENTILE, MSE = "minmax", "percentile", "mse"
METHODS = (MINMAX, PERCENTILE, MSE)
BINS = 2048
LEVELS = 255  # steps between the ends of an int8 range
_CLIPS = np.linspace(0.3, 1.0, 36)  # the shares of a range's ends that least error tries

Range = tuple[float, float]


def observe(
    module: fx.GraphModule,
    batches: Sequence[Tensor],
    keys: Mapping[str, str],
    method: str,
    percentile: float,
) -> dict[str, Range]:
    """Ranges by key. `keys`: of which range the value of a node (by name) is a part.

    `percentile`: of the values, in per cent, the method of that name clips half of the rest at
    either end. Every range has 0 in it. Raises HwpruneError for values that are not finite.
    """
    ends: dict[str, Range] = {}

    def extremes(name: str, value: Tensor) -> None:
        low, high = (float(v) for v in torch.aminmax(value))
        if not np.isfinite([low, high]).all():
            raise HwpruneError(
                "is not finite on the calibration data", where=f"value {name}",
                hint="look for infinities in the data and overflow in the network",
            )  # fmt: skip
        before = ends.get(keys[name], (0.0, 0.0))
        ends[keys[name]] = min(before[0], low), max(before[1], high)

    visit(module, batches, keys, extremes)
    if method == MINMAX:
        return ends
    counts = {key: np.zeros(BINS) for key in ends}

    def count(name: str, value: Tensor) -> None:
        low, high = ends[keys[name]]
        if low < high:
            counts[keys[name]] += torch.histc(value.float(), BINS, low, high).double().numpy()

    visit(module, batches, keys, count)
    shrink = _least_error if method == MSE else lambda c, r: _quantiles(c, r, percentile)
    return {key: shrink(counts[key], ends[key]) if counts[key].any() else ends[key] for key in ends}


def visit(
    module: fx.GraphModule,
    batches: Sequence[Tensor],
    names: Container[str],
    see: Callable[[str, Tensor], None],
) -> None:
    """Run a graph on all batches and show the values of the named nodes."""

    class Watched(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if n.name in names:
                see(n.name, value)
            return value

    with torch.no_grad():
        for batch in batches:
            Watched(module).run(batch)


def _centres(ends: Range) -> np.ndarray:
    low, high = ends
    centres: np.ndarray = low + (np.arange(BINS) + 0.5) * (high - low) / BINS
    return centres


def _quantiles(counts: np.ndarray, ends: Range, percentile: float) -> Range:
    """The ends between which `percentile` per cent of the values lie."""
    rest = (1.0 - percentile / 100.0) / 2.0
    share = np.cumsum(counts) / counts.sum()
    width = (ends[1] - ends[0]) / BINS
    first = int(np.searchsorted(share, rest, side="right"))
    last = int(np.searchsorted(share, 1.0 - rest - 1e-12))
    low, high = ends[0] + first * width, ends[0] + (last + 1) * width
    return min(low, 0.0), max(high, 0.0)


def _least_error(counts: np.ndarray, ends: Range) -> Range:
    """The shares of both ends with the least squared error of rounding and clipping together."""
    filled = counts > 0
    centres, weights = _centres(ends)[filled], counts[filled]
    best, least = ends, np.inf
    for lower in _CLIPS if ends[0] < 0 else (1.0,):
        for upper in _CLIPS if ends[1] > 0 else (1.0,):
            low, high = ends[0] * lower, ends[1] * upper
            step = (high - low) / LEVELS
            near = low + np.round((np.clip(centres, low, high) - low) / step) * step
            error = float(weights @ np.square(near - centres))
            if error < least:
                best, least = (low, high), error
    return best
