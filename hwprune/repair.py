"""The recovery step of the flow: what repairs a pruned network without labels, and on what.

In: the dense and the pruned program, and unlabelled images. Out: the repaired program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from hwprune.errors import HwpruneError
from hwprune.given import RECOVERED_AT_ONCE, recover_part
from hwprune.latency import Outcome
from hwprune.prepare import Prepared
from hwprune.program import Program
from hwprune.progress import Clock
from hwprune.recover import reconstruct

Recover = str | Callable[[Program], Program] | None


def check_recovery(how: Recover, images: bool) -> None:
    """Raise HwpruneError if this recovery does not exist, or needs images and there are none."""
    if how not in (None, "none", "auto", "reconstruct") and not callable(how):
        raise HwpruneError(f"unknown recovery {how!r}", hint="auto, reconstruct or none")
    if how == "reconstruct" and not images:
        raise HwpruneError("recovery needs unlabelled inputs", hint="pass calibrate")


def repair(
    how: Recover,
    prepared: Prepared,
    outcome: Outcome,
    kept: Mapping[str, Mapping[int, np.ndarray]],
    images: Tensor | None,
    seed: int,
    clock: Clock,
) -> tuple[Program, list[dict[str, Any]]]:
    """The recovered program, and how well each layer was reconstructed."""
    if callable(how):
        with clock.stage("recover"):
            return recover_by(how, outcome.program), []
    if how in (None, "none") or images is None:
        return outcome.program, []
    fitted = recover_part(images).split(RECOVERED_AT_ONCE)
    with clock.stage("recover") as advance:
        repaired = reconstruct(
            prepared.program, outcome.program, kept, fitted, seed=seed, progress=advance
        )
    rows = [{"layer": e.name, "before": e.before, "after": e.after} for e in repaired.layers]
    return repaired.program, rows


def recover_by(how: Callable[[Program], Program], program: Program) -> Program:
    """What the user's own recovery makes of a program. Raises HwpruneError where it fails."""
    try:
        found = how(program)
    except HwpruneError:
        raise
    except Exception as error:
        raise HwpruneError(
            f"your function failed: {type(error).__name__}: {error}", where="recover"
        ) from error
    if not isinstance(found, Program):
        kind = "a module" if isinstance(found, nn.Module) else type(found).__name__
        raise HwpruneError(
            f"your function gave {kind}, not a Program",
            where="recover",
            hint="return the Program that it got, its module trained, or another",
        )
    return found
