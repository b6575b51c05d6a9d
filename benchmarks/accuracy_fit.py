"""Meeting one measured latency with a method that has one setting: search, build, time.

In: a function from an amount in (0, 1] to a network, larger for larger amounts. Out: the slowest
network found within the budget, timed beside the dense one, and how it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from hwprune.bench import Pair
from hwprune.errors import BudgetError
from hwprune.program import Program
from hwprune.turns import OVER, UNDER

STEPS = 8
Kept = Mapping[str, Mapping[int, np.ndarray]]


@dataclass(frozen=True)
class Candidate:
    """A smaller network; what it keeps of the dense one's tensors, None where its weights are new.

    `kept`: indices by parameter name and dimension, as `hwprune.recover.reconstruct` takes them.
    """

    program: Program
    kept: Kept | None
    setting: float | None = None


@dataclass(frozen=True)
class Timed:
    """A candidate and its interleaved latency beside the dense network's."""

    candidate: Candidate
    pair: Pair


def fit(
    make: Callable[[float], Candidate], time_it: Callable[[Program], Pair], share: float
) -> Timed:
    """The candidate of the highest latency at most `share` of the dense one's (times OVER).

    Bisects the amount until the latency is at least UNDER of the budget, or STEPS are through.
    Networks of the same shapes are timed once. Raises BudgetError where no candidate meets it.
    """
    low, high, amount = 0.0, 1.0, share
    known: dict[tuple[tuple[int, ...], ...], Timed] = {}
    for _ in range(STEPS):
        candidate = make(amount)
        shapes = tuple(tuple(p.shape) for p in candidate.program.module.parameters())
        if shapes not in known:
            known[shapes] = Timed(candidate, time_it(candidate.program))
        used = known[shapes].pair.ratio / share
        if UNDER <= used <= OVER:
            return known[shapes]
        low, high = (amount, high) if used < UNDER else (low, amount)
        amount = (low + high) / 2
    within = [timed for timed in known.values() if timed.pair.ratio <= share * OVER]
    if not within:
        least = min(timed.pair.ratio for timed in known.values())
        raise BudgetError(
            f"cannot be met: {100 * share:.3g} % of the dense latency asked, "
            f"{100 * least:.3g} % is the smallest found"
        )
    return max(within, key=lambda timed: timed.pair.ratio)
