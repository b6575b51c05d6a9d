"""Ctrl-C: held back while files change places, and noticed even where a library swallows it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

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
    report, sys.unraisablehook = sys.unraisablehook, _quiet(sys.unraisablehook)
    try:
        yield
    finally:
        sys.unraisablehook = report
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


def _quiet(report: Callable[[Any], object]) -> Callable[[Any], object]:
    """Says nothing of objects that an interruption left half made and that fail in `__del__`."""

    def hook(unraisable: Any) -> object:
        return None if _seen.is_set() else report(unraisable)

    return hook


def _interrupt(number: int, frame: FrameType | None) -> None:
    _seen.set()
    raise KeyboardInterrupt
