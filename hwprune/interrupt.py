"""Ctrl-C: held back while files change places, and noticed even where a library swallows it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_seen = threading.Event()


@contextmanager
def remembered() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt within the block, and `check` raises it again after that."""
    _seen.clear()
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN or before is None:  # whoever started us wants it so
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _seen.clear()  # what is done afterwards in this process was not interrupted


def seen() -> bool:
    """Whether Ctrl-C was pressed in the `remembered` block we are in."""
    return _seen.is_set()


def check() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed and something lost it on its way."""
    if _seen.is_set():
        raise KeyboardInterrupt


@contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, which should take milliseconds."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    waiting: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            signal.raise_signal(signal.SIGINT)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _seen.set()
    raise KeyboardInterrupt
