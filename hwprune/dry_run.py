"""The dry run: which groups a network can spare, before anything is pruned.

In: a model, and unlabelled inputs or labelled batches. Out: a `Sensitivity`, and its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path

from torch import Tensor

from hwprune.atomic import check_writable
from hwprune.couple import couple
from hwprune.curves import Sensitivity
from hwprune.errors import HwpruneError
from hwprune.forms import AUTO, HEADS, Forms
from hwprune.given import Model, as_images, as_program
from hwprune.importance import INPUTS, Importance, sensitivity_batches
from hwprune.program import specialize
from hwprune.progress import Clock, Progress, Silent
from hwprune.report.sensitivity import save_plot
from hwprune.score import Batch, Loss
from hwprune.sensitivity import SHARES, measure_sensitivity

JSON_FILE, PLOT_FILE = "sensitivity.json", "sensitivity.svg"


def find_sensitivity(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    calibrate: Tensor | Sequence[Tensor] | None = None,
    batches: Sequence[Batch] | None = None,
    loss: Loss | None = None,
    importance: str = "auto",
    aggregate: str | None = None,
    shares: Sequence[float] = SHARES,
    images: int = INPUTS,
    out: str | PathLike[str] | None = None,
    attention: str = HEADS,
    grouped: str = AUTO,
    group_norm: str = AUTO,
    branches: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    name: str = "",
) -> Sensitivity:
    """Measure how much the outputs suffer when one group alone gets narrower.

    Args:
        model, inputs: as `prune` takes them.
        calibrate: unlabelled inputs, (N, …); of these, `images` are run.
        batches, loss: labelled batches instead, all of them: loss and accuracy are measured too.
        importance, aggregate: the weakest units by this criterion go first.
        shares: of every group's width, that are kept.
        out: a directory for `sensitivity.json` and its plot; what is there already is not measured
            again.

    Raises HwpruneError where data are missing or a name is unknown.
    """
    asked = Importance(importance, aggregate, None, seed, batches, loss)
    asked.check(calibrate is not None)
    if calibrate is None and batches is None:
        raise HwpruneError("sensitivity needs unlabelled images or batches", hint="pass calibrate")
    if not all(0 <= share < 1 for share in shares) or not shares:
        raise HwpruneError("shares lie between 0 and 1", where="shares")
    forms = Forms(attention, grouped, group_norm, branches).checked()
    clock = Clock(progress or Silent())
    if out is not None:
        check_writable(out)
        Path(out).mkdir(parents=True, exist_ok=True)
    with clock.stage("capture"):
        program = as_program(model, inputs, name)
        given = as_images(calibrate, program)
        asked = asked.read(program)
    with clock.stage("couple"):
        coupling = couple(specialize(program), **asdict(forms))
    with clock.stage("score") as advance:
        scores = asked.on(given)(program, coupling, advance)
    judged, fit = list(asked.batches or ()), list[Batch]()
    if asked.batches is None:
        judged, fit = sensitivity_batches(program, given, None, images)
    with clock.stage("sensitivity") as advance:
        found = measure_sensitivity(
            program, coupling, scores, judged, fit=fit,
            loss=loss, importance=asked.name(given is not None), shares=shares, progress=advance,
            file=None if out is None else Path(out) / JSON_FILE,
        )  # fmt: skip
    if out is not None:
        save_plot(found, Path(out) / PLOT_FILE)
    return found
