"""From a model to a smaller one: capture, couple, score, price, allocate, rewrite, verify, recover.

In: a model, a target and budgets, or a plan. Out: a `PruneResult`; `compiling.py` goes on from it.
Every function here reads as the list of its stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwprune.account import Facts, account
from hwprune.apply_plan import apply_plan
from hwprune.capture import Program
from hwprune.couple import couple
from hwprune.coupling import Coupling
from hwprune.errors import HwpruneError
from hwprune.forms import AUTO, HEADS, Forms
from hwprune.given import Model, as_images, as_program
from hwprune.gradual import Gradual, check_steps
from hwprune.importance import Importance
from hwprune.latency import search
from hwprune.plan import Plan
from hwprune.prepare import prepare
from hwprune.progress import Clock, Progress, Silent
from hwprune.remote.address import Boards
from hwprune.repair import Recover, check_recovery, repair
from hwprune.request import Request, read_request
from hwprune.result import PruneResult, describe_groups
from hwprune.score import Batch, Loss
from hwprune.score.scoring import Energies
from hwprune.search_stages import Searched, describe_stages, merge, stage_budgets
from hwprune.stages import certify, kept_through
from hwprune.target import FLOAT32
from hwprune.threshold import Weak, weak_units

__all__ = [
    "PruneResult",
    "inspect",
    "prune",
]


def prune(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    target: str = "host",
    latency: str | float | None = None,
    macs: str | float | None = None,
    params: str | float | None = None,
    threshold: float | None = None,
    plan: Plan | str | Path | None = None,
    importance: str = "auto",
    aggregate: str | None = None,
    normalize: str | None = None,
    attention: str = HEADS,
    grouped: str = AUTO,
    group_norm: str = AUTO,
    branches: bool | None = None,
    steps: int | None = None,
    threads: int = 1,
    seed: int = 0,
    recover: Recover = "auto",
    calibrate: Tensor | Sequence[Tensor] | None = None,
    batches: Sequence[Batch] | None = None,
    loss: Loss | None = None,
    boards: Boards | None = None,
    dtype: str = FLOAT32,
    progress: Progress | None = None,
    name: str = "",
) -> PruneResult:
    """Prune a model to budgets on a device, or as a plan says.

    Args:
        model: a module, an ExportedProgram, or the path of a `.pt2` file.
        inputs: example inputs, batch first; may be None where the program brings its own.
        target: a target's name; a latency budget measures kernels on this machine, or predicts
            those of a device that is not here (docs/prediction.md).
        latency, macs, params: absolute ("8ms", "300M") or relative ("50%", 0.5) budgets.
        threshold: units go whose energy is less than this share of their group's mean, alone or
            beside budgets (`hwprune.threshold`).
        plan: a plan of this model, or the path of its `plan.json`, to apply instead of a search.
        importance: a criterion of `hwprune.score.CRITERIA`; those that look at activations or
            gradients need `calibrate`, or `batches` and `loss`. "auto" is "reconstruction" with
            `calibrate`, else "l2".
        aggregate, normalize: how the members of a group are joined and groups compared, of
            `hwprune.score.AGGREGATES` and `NORMALISATIONS`, or "sensitivity": by the measured error
            of the outputs, the default with `calibrate`. Without, None is the criterion's own.
        attention, grouped, group_norm, branches: what a unit is (`hwprune.forms.Forms`); a plan
            brings its own. None: residual branches may go where sensitivity is measured.
        steps: in which units go: between them, with `calibrate`, layers are reconstructed and the
            units that are left scored again (`hwprune.gradual`), and plans by several opinions
            of them tried out. 1 scores once and tries nothing; None takes the
            more steps the more goes, where there are 64 images or more.
        threads: of the compiled network.
        seed: of every random choice.
        recover: "auto" reconstructs layers from `calibrate` where it is given, "none" does not,
            a function takes the pruned Program and returns the recovered one.
        calibrate: unlabelled inputs, (N, …).
        boards: measure latencies on them (`hwprune.remote.address.read_boards`), not here.
        dtype: what the network is computed in on the device, of `hwprune.dtype.DTYPES`
            (docs/arm.md, docs/cuda.md); the smaller model itself stays float32.

    Raises a HwpruneError subclass for everything that a user can cause.
    """
    clock = Clock(progress or Silent())
    request = read_request(
        target=target, threads=threads, latency=latency, macs=macs, params=params, plan=plan,
        threshold=threshold, boards=boards, dtype=dtype,
    )  # fmt: skip
    check_recovery(recover, calibrate is not None)
    check_steps(steps, calibrate is not None)
    units = {
        "attention": attention, "grouped": grouped, "group_norm": group_norm, "branches": branches,
    }  # fmt: skip
    scorer = Importance(importance, aggregate, normalize, seed, batches, loss)
    weighed = scorer.weighed(calibrate is not None)
    forms = Forms.asked(units, weighed).checked(search=True).stages()
    if boards is not None and len(forms) > 1:
        raise HwpruneError(
            "two stages are not measured on boards", where="attention", hint="heads or head_dim"
        )
    if plan is None:
        scorer.check(calibrate is not None)
    torch.manual_seed(seed)
    with clock.stage("capture"):
        program = as_program(model, inputs, name)
        images = as_images(calibrate, program)
    asked = scorer.read(program).on(images)
    gradual = Gradual(asked, steps, seed)
    done = _stages(request, program, forms, gradual, clock)
    return _finish(request, done, recover, images, seed, clock)


def inspect(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    attention: str = HEADS,
    grouped: str = AUTO,
    group_norm: str = AUTO,
    branches: bool = True,
    name: str = "",
) -> dict[str, Any]:
    """Groups with their members, removable branches, and what is frozen and why."""
    forms = Forms(attention, grouped, group_norm, branches).checked()
    program = as_program(model, inputs, name)
    return describe_groups(program, couple(program, **asdict(forms)))


def _stages(
    request: Request,
    program: Program,
    forms: Sequence[Forms],
    gradual: Gradual,
    clock: Clock,
) -> list[Searched]:
    """Prune by the request's plan, or search; in stages where the plan or the forms have some."""
    parts: Sequence[Plan | None] = [None] * len(forms)
    if request.plan is not None:
        parts = request.plan.stages()
        forms = [plan.forms for plan in request.plan.stages()]
    done: list[Searched] = []
    for form, plan in zip(forms, parts, strict=True):
        with clock.stage("couple"):
            start = done[-1].outcome.program if done else program
            prepared = prepare(start, request.target, request.threads, **asdict(form))
        if not prepared.candidates:
            break
        if plan is not None:
            with clock.stage("rewrite"):
                done.append(Searched(prepared, {}, apply_plan(plan, request.source, prepared)))
            continue
        with clock.stage("score") as advance:
            scores, energies = gradual.scorer.scored(start, prepared.coupling, advance)
            weak = _weak_units(request, energies, prepared.coupling)
        first = done[0].prepared if done else prepared
        budgets = stage_budgets(request.budgets, first, done, len(forms))
        found = search(prepared, scores, budgets, clock, weak, request.boards, gradual)
        done.append(Searched(prepared, scores, found))
    if not done:
        raise HwpruneError("nothing can be pruned", where=program.name, hint="see hwprune inspect")
    return done


def _weak_units(request: Request, energies: Energies, coupling: Coupling) -> Weak:
    if request.threshold is None:
        return {}
    return weak_units(energies.groups, coupling, request.threshold)


def _finish(
    request: Request,
    done: Sequence[Searched],
    recover: Recover,
    images: Tensor | None,
    seed: int,
    clock: Clock,
) -> PruneResult:
    """Verify the smaller program, recover it, and account for the run."""
    prepared, outcome = done[0].prepared, merge(done)
    stages = [searched.stage for searched in done]
    with clock.stage("verify"):
        certificate = certify(stages, seed)
        certificate.check()
    kept = kept_through(stages)
    recovered, layers = repair(recover, prepared, outcome, kept, images, seed, clock)
    facts = Facts(
        prepared, done[0].scores, request.budgets, outcome, certificate, recovered, layers, images,
        clock.seconds, request.source,
    )  # fmt: skip
    report = account(facts)
    if request.plan is None:
        report["scored_steps"] = outcome.steps
    if request.threshold is not None:
        report["threshold"] = request.threshold
    if len(done) > 1:
        report["stages"] = describe_stages(done)
    return PruneResult(
        recovered.module, outcome.plan, kept, report, recovered, prepared.program,
        prepared.coupling, certificate, request.target, request.threads, outcome,
    )  # fmt: skip
