"""Sensitivity curves: the error of a network's outputs over the width of one group alone.

Kept as JSON. `weigh` turns them into scores that weigh the groups of a network against each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwprune.atomic import write_text
from hwprune.errors import HwpruneError
from hwprune.score import Scores

FORMAT = 2
LOST = 0.95  # beyond this error nothing is left of the outputs: more is not worse


@dataclass(frozen=True)
class Point:
    """The network with one group at `width`: its error, and with labels its loss and accuracy.

    `error` is |y - y0|^2 / |y0|^2 over all outputs y, those of the whole network y0.
    """

    width: int
    error: float
    loss: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Curve:
    """A group's points, from its full width down; a branch has width one."""

    group: str
    width: int
    points: tuple[Point, ...]

    @property
    def half(self) -> float:
        """The error with half the units, interpolated: what groups are sorted by."""
        ascending = self.points[::-1]
        widths = [p.width / self.width for p in ascending]
        return float(np.interp(0.5, widths, [p.error for p in ascending]))


@dataclass(frozen=True)
class Sensitivity:
    """The curves of a program (its fingerprint), and of how many inputs they are.

    `compensated` says that layers got something for units that were gone: what `fitted` other
    inputs say of them, or where these are none, their mean.
    """

    fingerprint: str
    model: str
    importance: str
    inputs: int
    compensated: bool
    fitted: int
    curves: tuple[Curve, ...]

    def ranked(self) -> list[Curve]:
        """The most sensitive group first."""
        return sorted(self.curves, key=lambda c: -c.half)

    def to_json(self) -> dict[str, Any]:
        """As `sensitivity.json` holds it."""
        return {"format": FORMAT, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write the JSON file, whole or not at all."""
        write_text(path, json.dumps(self.to_json(), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> Sensitivity:
        """Read what `save` wrote. Raises HwpruneError where it is absent or malformed."""
        try:
            raw = json.loads(path.read_text())
            if raw["format"] != FORMAT:
                raise ValueError(f"format {raw['format']}")
            curves = tuple(
                Curve(str(c["group"]), int(c["width"]), tuple(Point(**p) for p in c["points"]))
                for c in raw["curves"]
            )
            return Sensitivity(
                str(raw["fingerprint"]), str(raw["model"]), str(raw["importance"]),
                int(raw["inputs"]), bool(raw["compensated"]), int(raw["fitted"]), curves,
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HwpruneError(
                f"cannot be read as sensitivity curves: {error}",
                where=str(path),
                hint="remove it: it is measured anew",
            ) from error


def weigh(scores: Scores, sensitivity: Sensitivity) -> dict[str, np.ndarray]:
    """Scores whose sum over the kept units of a group is the damage that they keep away.

    With an error e, `LOST` at most, 1 - e of the outputs is left; of several groups narrowed
    together about the product is, so that damages -log(1 - e) add up over groups. A group that is
    nearly emptied costs more than its error says: others suffer with it. The damage over the width
    is made convex from below (its lower hull), so that a unit is worth less the more are there.
    The units' order stays that of `scores`.
    """
    curves = {c.group: c for c in sensitivity.curves}
    missing = sorted(scores.keys() - curves.keys())
    if missing:
        raise HwpruneError("has no sensitivity curve", where=missing[0], hint="measure it first")
    return {name: _weighed(np.asarray(s), curves[name]) for name, s in scores.items()}


def _weighed(scores: np.ndarray, curve: Curve) -> np.ndarray:
    widths = [float(p.width) for p in curve.points[::-1]]
    errors = np.minimum(np.maximum.accumulate([p.error for p in curve.points]), LOST)
    hull = _lower_hull(widths, -np.log1p(-errors)[::-1])
    at = np.arange(len(scores) + 1, dtype=np.float64)
    damage = np.interp(at, [w for w, _ in hull], [d for _, d in hull])
    if widths[0] > 0 and len(hull) > 1:  # not measured: as steep as where it was
        (w0, d0), (w1, d1) = hull[:2]
        damage = np.where(at < w0, d0 + (w0 - at) * (d0 - d1) / (w1 - w0), damage)
    gained = np.maximum(-np.diff(damage), 0.0)
    gained += (gained.max() or 1.0) * 1e-9 * np.arange(len(gained), 0, -1)  # no ties: order stays
    worth = np.empty(len(scores))
    worth[np.argsort(-scores, kind="stable")] = np.sort(gained)[::-1]
    return worth


def _lower_hull(x: Sequence[float], y: Iterable[float]) -> list[tuple[float, float]]:
    """The lower convex hull of points with ascending x."""
    hull: list[tuple[float, float]] = []
    for point in zip(x, y, strict=True):
        while len(hull) > 1 and _turns_up(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _turns_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
