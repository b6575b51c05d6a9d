"""The whole flow: capture, couple, score, price, allocate, rewrite, verify, recover, compile.

`prune` stops at the smaller model, `compile` takes any model to an artifact, `compile_pruned` does
both and writes the directory with its report. Every function here reads as the list of its stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwprune.account import Facts, account, add_latency
from hwprune.apply_plan import apply_plan
from hwprune.atomic import check_writable
from hwprune.build import build
from hwprune.capture import Program
from hwprune.couple import couple
from hwprune.deploy import Artifact
from hwprune.errors import HwpruneError
from hwprune.forms import AUTO, HEADS, Forms
from hwprune.given import Model, as_images, as_program
from hwprune.importance import Importance, Scorer
from hwprune.latency import interleaved, search
from hwprune.plan import Plan
from hwprune.prepare import Prepared, measure_kernels, open_table, prepare
from hwprune.progress import Advance, Clock, Progress, Silent
from hwprune.repair import Recover, check_recovery, repair
from hwprune.request import Request, read_request, read_target
from hwprune.result import ProfileResult, PruneResult, describe_groups, save
from hwprune.score import Batch, Loss
from hwprune.search_stages import Searched, describe_stages, merge, stage_budgets
from hwprune.stages import certify, kept_through
from hwprune.threshold import Weak, weak_units

__all__ = [
    "ProfileResult",
    "PruneResult",
    "compile",
    "compile_pruned",
    "inspect",
    "profile",
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
    branches: bool = False,
    threads: int = 1,
    seed: int = 0,
    recover: Recover = "auto",
    calibrate: Tensor | Sequence[Tensor] | None = None,
    batches: Sequence[Batch] | None = None,
    loss: Loss | None = None,
    progress: Progress | None = None,
    name: str = "",
) -> PruneResult:
    """Prune a model to budgets on a device, or as a plan says.

    Args:
        model: a module, an ExportedProgram, or the path of a `.pt2` file.
        inputs: example inputs, batch first; may be None where the program brings its own.
        target: a target's name; a latency budget measures kernels on this machine.
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
            brings its own.
        threads: of the compiled network.
        seed: of every random choice.
        recover: "auto" reconstructs layers from `calibrate` where it is given, "none" does not,
            a function takes the pruned Program and returns the recovered one.
        calibrate: unlabelled inputs, (N, …).

    Raises a HwpruneError subclass for everything that a user can cause.
    """
    clock = Clock(progress or Silent())
    request = read_request(
        target=target, threads=threads, latency=latency, macs=macs, params=params, plan=plan,
        threshold=threshold,
    )  # fmt: skip
    check_recovery(recover, calibrate is not None)
    forms = Forms(attention, grouped, group_norm, branches).checked(search=True).stages()
    scorer = Importance(importance, aggregate, normalize, seed, batches, loss)
    if plan is None:
        scorer.check(calibrate is not None)
    torch.manual_seed(seed)
    with clock.stage("capture"):
        program = as_program(model, inputs, name)
        images = as_images(calibrate, program)
    scores = scorer.on(images)
    done = _stages(request, program, forms, scores, clock)
    return _finish(request, done, recover, images, seed, clock)


def compile(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    target: str = "host",
    threads: int = 1,
    progress: Progress | None = None,
    name: str = "",
) -> Artifact:
    """Compile any model, pruned or not, for a device; checked against PyTorch."""
    clock = Clock(progress or Silent())
    chosen = read_target(target, threads, compiles=True)
    with clock.stage("capture"):
        program = as_program(model, inputs, name)
    with clock.stage("compile"):
        return build(program, chosen, threads).artifact


def compile_pruned(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    out: str | PathLike[str],
    target: str = "host",
    threads: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[PruneResult, Artifact]:
    """Prune, compile, measure dense and pruned side by side, and write the artifact directory."""
    check_writable(out)
    read_target(target, threads, compiles=True)
    clock = Clock(progress or Silent())
    result = prune(model, inputs, target=target, threads=threads, progress=clock, **options)
    timing = result.outcome.timing
    with clock.stage("compile pruned"):
        final = build(result.program, result.target, threads)
    if timing is None:
        with clock.stage("compile dense"):
            dense = build(result.dense, result.target, threads)
    else:
        dense = timing.dense
    with clock.stage("measure"):
        add_latency(result.report, interleaved(dense.artifact, final.artifact))
        result.report["max_rel_error_compiled"] = final.max_rel_error
    result.report["seconds"] = {k: round(v, 2) for k, v in clock.seconds.items()}
    save(result, final.artifact, out)
    return result, final.artifact


def inspect(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    attention: str = HEADS,
    grouped: str = AUTO,
    group_norm: str = AUTO,
    branches: bool = False,
    name: str = "",
) -> dict[str, Any]:
    """Groups with their members, removable branches, and what is frozen and why."""
    forms = Forms(attention, grouped, group_norm, branches).checked()
    program = as_program(model, inputs, name)
    return describe_groups(program, couple(program, **asdict(forms)))


def profile(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    target: str = "host",
    attention: str = HEADS,
    grouped: str = AUTO,
    group_norm: str = AUTO,
    branches: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
    name: str = "",
) -> ProfileResult:
    """Fill the target's latency table for this model's kernels; resumes where it was stopped."""
    forms = Forms(attention, grouped, group_norm, branches).checked()
    clock = Clock(progress or Silent())
    chosen = read_target(target, threads, measures=True)
    with clock.stage("capture"):
        program = as_program(model, inputs, name)
    prepared = prepare(program, chosen, threads, **asdict(forms))
    with open_table(chosen) as table, clock.stage("measure kernels") as advance:
        done = measure_kernels(prepared, table, advance)
        path = str(table.path)
    failed = tuple(w.op for w in done.failed)
    return ProfileResult(done.measured, done.reused, failed, done.seconds, path)


def _stages(
    request: Request,
    program: Program,
    forms: Sequence[Forms],
    scorer: Scorer,
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
            scores = scorer(start, prepared.coupling, advance)
            weak = _weak_units(request, scorer, prepared, advance)
        first = done[0].prepared if done else prepared
        budgets = stage_budgets(request.budgets, first, done, len(forms))
        done.append(Searched(prepared, scores, search(prepared, scores, budgets, clock, weak)))
    if not done:
        raise HwpruneError("nothing can be pruned", where=program.name, hint="see hwprune inspect")
    return done


def _weak_units(request: Request, scorer: Scorer, prepared: Prepared, advance: Advance) -> Weak:
    if request.threshold is None:
        return {}
    strengths = scorer.strengths(prepared.program, prepared.coupling, advance)
    return weak_units(strengths, prepared.coupling, request.threshold)


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
    if request.threshold is not None:
        report["threshold"] = request.threshold
    if len(done) > 1:
        report["stages"] = describe_stages(done)
    return PruneResult(
        recovered.module, outcome.plan, kept, report, recovered, prepared.program,
        prepared.coupling, certificate, request.target, request.threads, outcome,
    )  # fmt: skip
