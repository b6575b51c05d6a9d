"""Batches compiled before they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from hwprune.cuda_ahead import Ahead
from hwprune.errors import LoweringError
from hwprune.lower.spec import Workload
from tests.test_predict_gpu import conv

BATCHES = [(conv(64, 8 * n, 14, 1), conv(64, 8 * n, 7, 1)) for n in range(1, 6)]


def test_the_next_batch_is_made_before_it_is_asked_for() -> None:
    second = threading.Event()

    def make(batch: Sequence[Workload]) -> int:
        if batch == BATCHES[1]:
            second.set()
        return BATCHES.index(tuple(batch))

    with Ahead(BATCHES, make) as ahead:
        assert ahead.take(BATCHES[0]) == 0
        assert second.wait(10)
        assert [ahead.take(batch) for batch in BATCHES[1:]] == [1, 2, 3, 4]


def test_what_was_not_foreseen_is_made_at_once() -> None:
    """Another process may have measured some, and what fails is tried by halves."""
    made: list[Sequence[Workload]] = []

    def make(batch: Sequence[Workload]) -> int:
        made.append(batch)
        if len(batch) == 2:
            raise LoweringError("refused")
        return len(batch)

    with Ahead(BATCHES[:3], make) as ahead:
        with pytest.raises(LoweringError, match="refused"):
            ahead.take(BATCHES[0])
        assert ahead.take(BATCHES[0][:1]) == 1
        with pytest.raises(LoweringError, match="refused"):
            ahead.take(BATCHES[2])  # the second is passed over
    assert made.count(BATCHES[0]) == made.count(BATCHES[2]) == 1
