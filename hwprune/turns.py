"""Turns of a search for a latency: what a network that missed its budget teaches the next.

In: the predicted sum of a plan's kernels and what its network took. Out: the calibration to solve
with next, and whether another turn is worth its time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from hwprune.calibrate import Calibration, fit

USUAL, MOST = 3, 6  # turns: usually, and where more than SPARE of the budget is not used
OVER, UNDER, SPARE = 1.01, 0.95, 0.92  # latency over the budget: accepted, aimed at, put up with
NEAR = 0.5  # of a goal: runs below that say little of it


@dataclass
class Turns:
    """The turns so far. `runs` are (sum of corrected kernels, latency of the network) in us.

    `rough` prices are a model's: all turns may be needed, and the narrowest network is built once.
    `over` is how much of the goal may be used.
    """

    goal_us: float
    calibration: Calibration
    runs: list[tuple[float, float]]
    rough: bool = False
    over: float = OVER
    done: int = 0
    _narrowest: int = 0
    _used: list[float] = field(default_factory=list)

    def learn(
        self, kernels_us: float, network_us: float, *, narrowest: bool = False, full: bool = False
    ) -> bool:
        """Whether there is another turn, after one whose network took `network_us`.

        `narrowest`: there was nothing narrower; `full`: there is nothing to add.
        """
        self.done += 1
        self._narrowest += narrowest
        used = network_us / self.goal_us
        self._used.append(used)
        same = any(math.isclose(kernels_us, known, rel_tol=1e-9) for known, _ in self.runs)
        self.runs.append((kernels_us, network_us))
        if same and used <= self.over:
            return False  # the same plan again: there is none between
        if UNDER <= used <= self.over or (used < UNDER and full):
            return False
        if self.rough and narrowest and self._narrowest > 1:
            return False  # it teaches no more
        self.calibration = self._next(kernels_us, network_us)
        return self.done < self._most()

    def hopeless(self, network_us: float) -> bool:
        """Whether a narrowest network of this latency says that the goal is out of reach."""
        return network_us > self.over * self.goal_us and all(u > self.over for u in self._used)

    def _most(self) -> int:
        usual = MOST if self.rough else USUAL
        spare = max((u for u in self._used if u <= self.over), default=0.0) < SPARE
        return (MOST if spare else usual) + (self._narrowest > 0)

    def _next(self, kernels_us: float, network_us: float) -> Calibration:
        found = fit(self.runs, self.calibration.corrections)
        if not self.rough:
            found = nearest(self.runs, self.goal_us, found)
        known = found.network_us(kernels_us) > self.over * self.goal_us
        if network_us > self.over * self.goal_us and (self.rough or not known):
            return through(found, kernels_us, network_us)  # or the same plan were chosen again
        return found


def nearest(
    runs: list[tuple[float, float]], goal_us: float, calibration: Calibration
) -> Calibration:
    """The line through the runs next to a goal on both sides; the calibration where there is none.

    Near the goal it says more than a fit to runs that are far from it.
    """
    below = max((r for r in runs if r[1] <= goal_us), key=lambda r: r[1], default=None)
    above = min((r for r in runs if r[1] > goal_us), key=lambda r: r[1], default=None)
    if below is None or above is None or above[0] <= below[0] or below[1] < NEAR * goal_us:
        return calibration
    factor = (above[1] - below[1]) / (above[0] - below[0])
    return replace(calibration, overhead_us=below[1] - factor * below[0], factor=factor)


def through(calibration: Calibration, kernels_us: float, network_us: float) -> Calibration:
    """The calibration scaled to give a network its measured latency: it is not chosen again.

    Plans of like sizes are near it; where a model prices them, a fit to all runs may miss each.
    """
    scale = network_us / calibration.network_us(kernels_us)
    overhead, factor = calibration.overhead_us * scale, calibration.factor * scale
    return replace(calibration, overhead_us=overhead, factor=factor)
