"""Networks timed in turn."""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
import pytest

from hwprune.bench import RUNS_A_ROUND, in_turn, ratios
from hwprune.deploy import Artifact
from hwprune.quiet import SECONDS


class Timed:
    """Stands in for an artifact: it takes a while and says what it took."""

    def __init__(self, name: str, us: float, order: list[str]) -> None:
        self.name, self.us, self.order = name, us, order

    def latencies_us(self, repeats: int, *, warmup: int) -> list[float]:
        self.order.append(self.name)
        time.sleep((repeats + warmup) * self.us / 1e6)
        return [self.us] * repeats


def timed(us: float, rounds: int) -> tuple[np.ndarray, list[str], float]:
    order: list[str] = []
    started = time.perf_counter()
    pair: Any = (Timed("dense", 2 * us, order), Timed("pruned", us, order))
    times = in_turn(cast("tuple[Artifact, ...]", pair), rounds)
    return times, order, time.perf_counter() - started


def test_quick_networks_are_timed_for_a_while_one_after_the_other() -> None:
    times, order, seconds = timed(50.0, 3)
    assert times.shape[1:] == (2, RUNS_A_ROUND)
    assert len(times) > 3
    assert seconds >= SECONDS
    assert order == ["dense", "pruned"] * len(times)


def test_slow_networks_are_timed_as_often_as_asked() -> None:
    assert len(timed(20_000.0, 2)[0]) == 2


def test_ratios_are_to_the_first() -> None:
    rounds = np.array([1.0, 2.0, 4.0])[:, None, None]  # the machine gets slower
    times = rounds * np.array([10.0, 5.0])[None, :, None] * np.ones((3, 2, 4))
    assert ratios(times) == pytest.approx([1.0, 0.5])
