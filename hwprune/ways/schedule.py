"""How much is left after every step of a pruning that goes step by step."""

from __future__ import annotations

from collections.abc import Callable

from hwprune.errors import HwpruneError

LINEAR, EXPONENTIAL, CUBIC = "linear", "exponential", "cubic"
_CURVES: dict[str, Callable[[float, float], float]] = {
    LINEAR: lambda final, done: 1 - (1 - final) * done,
    EXPONENTIAL: lambda final, done: final**done,
    CUBIC: lambda final, done: final + (1 - final) * (1 - done) ** 3,
}
"""Share that is left when `done` (0 to 1) of the steps are; cubic: Zhu and Gupta, 2017."""


def check_schedule(steps: int, schedule: str) -> None:
    """Raise HwpruneError unless there is such a schedule with so many steps."""
    if type(steps) is not int or steps < 1:
        raise HwpruneError(f"{steps!r} steps", where="steps", hint="at least 1")
    if schedule not in _CURVES:
        raise HwpruneError(
            f"unknown schedule {schedule!r}", where="schedule", hint=", ".join(_CURVES)
        )


def share_left(final: float, steps: int, step: int, schedule: str) -> float:
    """The share of the dense network that is left after `step` (from 1) of `steps`.

    Linear removes the same amount each time, exponential the same share of what is left, cubic
    most at the beginning. After the last step it is `final` exactly.
    """
    return final if step == steps else _CURVES[schedule](final, step / steps)
