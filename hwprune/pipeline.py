"""The whole flow: capture, couple, score, price, allocate, rewrite, verify, recover, compile.

`prune` stops at the smaller model, `compile` takes any model to an artifact, `compile_pruned` does
both and writes the directory with its report. Every function here reads as the list of its stages.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from hwprune.account import HELD_OUT, Facts, account
from hwprune.atomic import check_writable
from hwprune.budget import LATENCY, MACS, PARAMS, Budget, parse_budget
from hwprune.build import Build, build
from hwprune.capture import Program, capture
from hwprune.couple import couple
from hwprune.coupling import Coupling
from hwprune.deploy import Artifact
from hwprune.errors import BudgetError, HwpruneError
from hwprune.latency import (
    Outcome,
    Prepared,
    interleaved,
    measure_kernels,
    open_table,
    prepare,
    search,
)
from hwprune.plan import Plan
from hwprune.progress import Advance, Progress, Silent
from hwprune.recover import fidelity, reconstruct
from hwprune.report import write_report
from hwprune.rewrite import kept_indices
from hwprune.score import Batch, Loss, score
from hwprune.target import Target, check_runnable, load_target
from hwprune.verify import Certificate, verify

Model = nn.Module | Program | torch.export.ExportedProgram | str | Path


@dataclass(frozen=True)
class PruneResult:
    """A pruned network.

    `module` is a trainable GraphModule; `kept` maps parameter names to kept indices by dimension;
    `report` is the dict behind report.json.
    """

    module: fx.GraphModule
    plan: Plan
    kept: Mapping[str, Mapping[int, np.ndarray]]
    report: dict[str, Any]
    program: Program
    dense: Program
    coupling: Coupling
    certificate: Certificate
    target: Target
    threads: int
    outcome: Outcome


@dataclass(frozen=True)
class ProfileResult:
    """What `profile` did: rows measured, reused and failed, and the table they are in."""

    measured: int
    reused: int
    failed: tuple[str, ...]
    seconds: float
    table: str


@dataclass
class _Clock:
    """Seconds by stage; passes stages on to whoever shows them."""

    shown: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        started = time.perf_counter()
        with self.shown.stage(name) as advance:
            yield advance
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def prune(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    target: str = "host",
    latency: str | float | None = None,
    macs: str | float | None = None,
    params: str | float | None = None,
    importance: str = "l2",
    threads: int = 1,
    seed: int = 0,
    recover: str | Callable[[Program], Program] | None = "auto",
    calibrate: Tensor | Sequence[Tensor] | None = None,
    batches: Sequence[Batch] | None = None,
    loss: Loss | None = None,
    progress: Progress | None = None,
    name: str = "",
) -> PruneResult:
    """Prune a model to budgets on a device.

    Args:
        model: a module, an ExportedProgram, or the path of a `.pt2` file.
        inputs: example inputs, batch first; may be None where the program brings its own.
        target: a target's name; a latency budget measures kernels on this machine.
        latency, macs, params: absolute ("8ms", "300M") or relative ("50%", 0.5) budgets.
        importance: a criterion of `hwprune.score.CRITERIA`; "taylor" needs `batches` and `loss`.
        threads: of the compiled network.
        seed: of every random choice.
        recover: "auto" reconstructs layers from `calibrate` where it is given, "none" does not,
            a function takes the pruned Program and returns the recovered one.
        calibrate: unlabelled inputs, (N, …).

    Raises a HwpruneError subclass for everything that a user can cause.
    """
    clock = _Clock(progress or Silent())
    budgets = _budgets(latency, macs, params)
    if not budgets:
        raise BudgetError("no budget given", hint="pass latency, macs or params")
    chosen = _target(target, threads, runs_here=LATENCY in budgets)
    torch.manual_seed(seed)
    with clock.stage("capture"):
        program = _capture(model, inputs, name)
        images = _images(calibrate, program)
    with clock.stage("couple"):
        prepared = prepare(program, chosen, threads)
    if not prepared.coupling.groups:
        raise HwpruneError("nothing can be pruned", where=program.name, hint="see hwprune inspect")
    with clock.stage("score"):
        scores = score(
            program, prepared.coupling, importance, batches=batches, loss=loss, seed=seed
        )
    outcome = search(prepared, scores, budgets, clock)
    with clock.stage("verify"):
        certificate = verify(program, prepared.coupling, outcome.plan, outcome.program, seed=seed)
        certificate.check()
    kept = kept_indices(prepared.coupling, outcome.plan, program)
    recovered, repair = _recover(recover, prepared, outcome, kept, images, seed, clock)
    facts = Facts(
        prepared, scores, budgets, outcome, certificate, recovered, repair, images, clock.seconds
    )
    return PruneResult(
        recovered.module,
        outcome.plan,
        kept,
        account(facts),
        recovered,
        program,
        prepared.coupling,
        certificate,
        chosen,
        threads,
        outcome,
    )


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
    clock = _Clock(progress or Silent())
    chosen = _target(target, threads, runs_here=True)
    with clock.stage("capture"):
        program = _capture(model, inputs, name)
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
    _target(target, threads, runs_here=True)
    clock = _Clock(progress or Silent())
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
        _final_latency(result.report, dense, final)
    result.report["seconds"] = {k: round(v, 2) for k, v in clock.seconds.items()}
    save(result, final.artifact, out)
    return result, final.artifact


def save(result: PruneResult, artifact: Artifact, out: str | PathLike[str]) -> None:
    """Write model.so, manifest.json, model.pt2, plan.json, report.json and report.html."""
    artifact.save(out, {**pruned_files(result), **write_report(result.report)})


def pruned_files(result: PruneResult) -> dict[str, bytes]:
    """The files of the smaller model itself: model.pt2 and plan.json."""
    buffer = io.BytesIO()
    program = result.program
    torch.export.save(export_program(program), buffer)
    return {"model.pt2": buffer.getvalue(), "plan.json": result.plan.to_json().encode()}


def export_program(program: Program) -> torch.export.ExportedProgram:
    """The program as torch.export writes it, with a dynamic batch where it has one."""
    module = program.module
    module.eval()
    if not program.dynamic_batch:
        return torch.export.export(module, program.inputs)
    inputs = tuple(torch.cat([x, x]) if x.shape[0] == 1 else x for x in program.inputs)
    dynamic = tuple({0: torch.export.Dim.AUTO} for _ in inputs)
    exported = torch.export.export(module, inputs, dynamic_shapes=dynamic)
    exported._example_inputs = (program.inputs, {})  # batch of the user's own example
    return exported


def inspect(
    model: Model, inputs: Sequence[Tensor] | None = None, *, name: str = ""
) -> dict[str, Any]:
    """Groups with their members, and what is frozen and why."""
    program = _capture(model, inputs, name)
    coupling = couple(program)
    return {
        "model": program.name,
        "params": sum(p.numel() for p in program.module.parameters()),
        "groups": [
            {
                "name": g.name,
                "width": g.width,
                "members": [
                    {"parameter": s.parameter, "dim": s.dim, "per_unit": int(i.shape[1])}
                    for s, i in sorted(g.index.items())
                ],
            }
            for g in coupling.groups
        ],
        "frozen": [
            {
                "name": f.name,
                "width": f.width,
                "reason": f.reason,
                "node": f.node,
                "source": f.source,
            }
            for f in coupling.frozen
        ],
    }


def profile(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    target: str = "host",
    threads: int = 1,
    progress: Progress | None = None,
    name: str = "",
) -> ProfileResult:
    """Fill the target's latency table for this model's kernels; resumes where it was stopped."""
    clock = _Clock(progress or Silent())
    chosen = _target(target, threads, runs_here=True)
    with clock.stage("capture"):
        program = _capture(model, inputs, name)
    prepared = prepare(program, chosen, threads)
    with open_table(chosen) as table, clock.stage("measure kernels") as advance:
        done = measure_kernels(prepared, table, advance)
        path = str(table.path)
    failed = tuple(w.op for w in done.failed)
    return ProfileResult(done.measured, done.reused, failed, done.seconds, path)


def _budgets(
    latency: str | float | None, macs: str | float | None, params: str | float | None
) -> dict[str, Budget]:
    given = {LATENCY: latency, MACS: macs, PARAMS: params}
    parsed = {r: parse_budget(text, r) for r, text in given.items()}
    return {r: b for r, b in parsed.items() if b is not None}


def _target(name: str, threads: int, *, runs_here: bool) -> Target:
    target = load_target(name)
    if threads < 1:
        raise HwpruneError(f"{threads} threads", where="threads", hint="at least 1")
    if runs_here:
        check_runnable(target)
    return target


def _capture(model: Model, inputs: Sequence[Tensor] | None, name: str) -> Program:
    if isinstance(model, Program):
        return model
    given = None if inputs is None else tuple(inputs)
    return capture(model, given, name=name)


def _images(calibrate: Tensor | Sequence[Tensor] | None, program: Program) -> Tensor | None:
    """Unlabelled inputs as one tensor; checked against the model's input."""
    if calibrate is None:
        return None
    images = calibrate if isinstance(calibrate, Tensor) else torch.cat(list(calibrate))
    wanted = tuple(program.inputs[0].shape[1:])
    if tuple(images.shape[1:]) != wanted or len(images) == 0:
        raise HwpruneError(
            f"calibration inputs have shape {tuple(images.shape)}, the model takes (N, {wanted})",
            where="calibrate",
        )
    if len(program.inputs) != 1:
        raise HwpruneError("calibration needs a model with one input", where="calibrate")
    return images


def _recover(
    how: str | Callable[[Program], Program] | None,
    prepared: Prepared,
    outcome: Outcome,
    kept: Mapping[str, Mapping[int, np.ndarray]],
    images: Tensor | None,
    seed: int,
    clock: _Clock,
) -> tuple[Program, list[dict[str, Any]]]:
    """The recovered program, and how well each layer was reconstructed."""
    if callable(how):
        with clock.stage("recover"):
            return how(outcome.program), []
    if how in (None, "none") or (how == "auto" and images is None):
        return outcome.program, []
    if images is None:
        raise HwpruneError("recovery needs unlabelled inputs", hint="pass calibrate")
    if how not in ("auto", "reconstruct"):
        raise HwpruneError(f"unknown recovery {how!r}", hint="auto, reconstruct or none")
    fitted = recover_part(images).split(16)
    with clock.stage("recover") as advance:
        repaired = reconstruct(
            prepared.program, outcome.program, kept, fitted, seed=seed, progress=advance
        )
    rows = [{"layer": e.name, "before": e.before, "after": e.after} for e in repaired.layers]
    return repaired.program, rows


def recover_part(images: Tensor) -> Tensor:
    """The images that recovery may see."""
    return images[[i for i in range(len(images)) if i % HELD_OUT or len(images) < HELD_OUT]]


def _final_latency(report: dict[str, Any], dense: Build, pruned: Build) -> None:
    pair = interleaved(dense.artifact, pruned.artifact)
    report["dense"]["latency_us"] = pair.dense_us
    report["pruned"]["latency_us"] = pair.pruned_us
    report["ratio"] = pair.ratio
    report["max_rel_error_compiled"] = pruned.max_rel_error
    if "predicted_us" in report["pruned"]:
        share = report["pruned"]["predicted_us"] / report["dense"]["predicted_us"]
        report["prediction_error"] = share / pair.ratio - 1


__all__ = [
    "ProfileResult",
    "PruneResult",
    "compile",
    "compile_pruned",
    "fidelity",
    "inspect",
    "profile",
    "prune",
]
