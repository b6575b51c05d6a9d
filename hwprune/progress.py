"""Progress of long work: a protocol that every stage reports to, silent unless someone listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from hwprune import interrupt

Advance = Callable[[int, int], None]  # (done, total)


class Progress(Protocol):
    """Told of every stage; `stage` yields a function to call with (done, total)."""

    def stage(self, name: str) -> AbstractContextManager[Advance]:
        """Enter a stage of the work."""


class Silent:
    """Reports nothing."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        """Enter a stage of the work."""
        yield lambda done, total: None


@dataclass
class Clock:
    """Seconds by stage; passes stages on to whoever shows them. Between them Ctrl-C is noticed."""

    shown: Progress = field(default_factory=Silent)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        """Enter a stage of the work."""
        interrupt.check()
        started = time.perf_counter()
        with self.shown.stage(name) as advance:
            yield advance
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        interrupt.check()


@contextmanager
def rich_progress() -> Iterator[Progress]:
    """A Rich progress display on standard error, one line a stage."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:

        class Shown:
            @contextmanager
            def stage(self, name: str) -> Iterator[Advance]:
                task = bars.add_task(name, total=1)
                yield lambda done, total: bars.update(task, completed=done, total=max(total, 1))
                total = bars.tasks[task].total or 1
                bars.update(task, completed=total, total=total)
                bars.stop_task(task)

        yield Shown()
