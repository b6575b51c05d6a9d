"""A progress bar for training, with the loss of the last step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hwprune.recover.callback import Step


@contextmanager
def training_bar(
    title: str, epochs: int, steps_per_epoch: int, console: Any = None
) -> Iterator[Callable[[Step], None]]:
    """A bar on standard error; what is yielded is the `progress` of `finetune`."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    total = epochs * steps_per_epoch
    with Progress(*columns, console=console or Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, loss="")

        def report(step: Step) -> None:
            done = step.epoch * steps_per_epoch + step.index + 1
            bar.update(task, completed=done, loss=f"loss {step.loss:.3f}")

        yield report
        bar.update(task, completed=total)  # also where a checkpoint had it all
