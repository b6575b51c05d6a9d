"""`Ahead`: batches of kernels compiled side by side, a few before a GPU times them.

In: batches in their order, how one becomes a `Made`. Out: the same, mostly without waiting: nvcc
takes longer for a kernel than a GPU to time it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from hwprune.lower.spec import Workload

Made = TypeVar("Made")
Batch = tuple[Workload, ...]


class Ahead(Generic[Made]):
    """Makes the batches after the one that is asked for. Use as a context manager."""

    def __init__(
        self, batches: Iterable[Sequence[Workload]], make: Callable[[Sequence[Workload]], Made]
    ) -> None:
        self._make = make
        self._waiting = deque(tuple(batch) for batch in batches)
        self._started: dict[Batch, Future[Made]] = {}
        self._workers = max(1, len(os.sched_getaffinity(0)) - 1)  # one is left to time with
        self._pool = ThreadPoolExecutor(self._workers)

    def __enter__(self) -> Ahead[Made]:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def take(self, batch: Sequence[Workload]) -> Made:
        """A batch, at once where it was foreseen. Raises what making it raises."""
        key = tuple(batch)
        if key in self._waiting:
            while self._waiting.popleft() != key:
                pass  # what was passed over is not asked for any more
            self._start(key)
        while self._waiting and len(self._started) <= self._workers:
            self._start(self._waiting.popleft())
        started = self._started.pop(key, None)
        return self._make(key) if started is None else started.result()

    def _start(self, batch: Batch) -> None:
        self._started[batch] = self._pool.submit(self._make, batch)
