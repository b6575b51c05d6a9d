"""Iterative pruning: prune a little, recover, score anew, until the whole budget is met.

In: a model and budgets, as `hwprune.prune` takes them, steps and a recovery. Out: a `PruneResult`
whose plan and kept indices are those of the original. Every step is certified against the network
that it starts from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from hwprune.account import Facts, account
from hwprune.account_latency import add_estimate, add_latency
from hwprune.bench import interleaved, is_timed
from hwprune.budget import LATENCY, MACS, PARAMS
from hwprune.build import build
from hwprune.errors import HwpruneError
from hwprune.estimate import estimate_pair
from hwprune.forms import AUTO, BOTH, HEADS, Forms
from hwprune.given import Model, as_program
from hwprune.importance import Importance
from hwprune.latency import Outcome
from hwprune.pipeline import prune
from hwprune.prepare import Prepared, prepare
from hwprune.program import Program, fingerprint
from hwprune.progress import Clock, Progress, Silent
from hwprune.recover import TrainConfig, finetune
from hwprune.recover.train import Loader
from hwprune.repair import check_recovery, recover_by
from hwprune.request import Request, read_request
from hwprune.result import PruneResult
from hwprune.search_stages import dense_amount
from hwprune.stages import Stage, compose, join, kept_through
from hwprune.ways.schedule import CUBIC, check_schedule, share_left
from hwprune.ways.trail import Trail

Recovery = str | Callable[[Program], Program] | TrainConfig
_NAMES = {LATENCY: "latency", MACS: "macs", PARAMS: "params"}


def prune_iteratively(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    steps: int,
    schedule: str = CUBIC,
    recover: Recovery = "auto",
    loader: Loader | None = None,
    steps_per_epoch: int | None = None,
    checkpoint: str | PathLike[str] | None = None,
    target: str = "host",
    threads: int = 1,
    latency: str | float | None = None,
    macs: str | float | None = None,
    params: str | float | None = None,
    attention: str = HEADS,
    grouped: str = AUTO,
    group_norm: str = AUTO,
    branches: bool | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    name: str = "",
    **options: Any,
) -> PruneResult:
    """Prune to budgets in several steps with a recovery after each.

    Args:
        steps: how many; `schedule` ("linear", "exponential" or "cubic") says what is left after
            each (`hwprune.ways.schedule`).
        recover: after every step: a function from the smaller Program to the recovered one; a
            TrainConfig, to fine-tune on `loader` (`steps_per_epoch` batches an epoch) with the
            dense network as teacher; or what `prune` takes.
        checkpoint: a directory that keeps every step; where it holds some, work goes on there.
        options: further ones of `hwprune.prune`, for every step: importance, calibrate, ...

    `report["steps"]` says what every step removed. Raises a HwpruneError subclass for everything
    that a user can cause.
    """
    clock = Clock(progress or Silent())
    check_schedule(steps, schedule)
    _check_training(recover, loader, steps_per_epoch, options)
    importance, images = Importance.among(options), options.get("calibrate") is not None
    importance.check(images)
    request = read_request(
        target=target, threads=threads, latency=latency, macs=macs, params=params
    )
    if attention == BOTH:
        raise HwpruneError("steps prune one form", where="attention", hint="heads or head_dim")
    units = {
        "attention": attention, "grouped": grouped, "group_norm": group_norm, "branches": branches,
    }  # fmt: skip
    forms = Forms.asked(units, importance.weighed(images)).checked()
    with clock.stage("capture"):
        program = as_program(model, inputs, name)
        prepared = prepare(program, request.target, threads, **asdict(forms))
    trail = Trail(None if checkpoint is None else Path(checkpoint))
    trail.begin(_settings(program, request, steps, schedule, forms, seed, recover, options))
    given = {"target": target, "threads": threads, "seed": seed, **asdict(forms), **options}
    runner = _Steps(request, prepared, trail, recover, loader, steps_per_epoch, given, clock)
    for step in range(1, steps + 1):
        shares = {r: share_left(f, steps, step, schedule) for r, f in runner.final.items()}
        runner.take(step, shares)
    return runner.result()


def _check_training(
    recover: Recovery,
    loader: Loader | None,
    steps_per_epoch: int | None,
    options: Mapping[str, Any],
) -> None:
    """Raise HwpruneError for a recovery that cannot be carried out."""
    if not isinstance(recover, TrainConfig):
        check_recovery(recover, options.get("calibrate") is not None)
        return
    if loader is None:
        raise HwpruneError("a TrainConfig needs batches", where="recover", hint="pass loader")
    if steps_per_epoch is None and not hasattr(loader, "__len__"):
        raise HwpruneError("how long is the loader?", where="loader", hint="pass steps_per_epoch")
    if steps_per_epoch is None and isinstance(loader, Sized) and len(loader) == 0:
        raise HwpruneError("the loader gives no batches", where="loader")


def _settings(
    program: Program,
    request: Request,
    steps: int,
    schedule: str,
    forms: Forms,
    seed: int,
    recover: Recovery,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What a checkpoint must have been made with to be gone on with."""
    word = recover if isinstance(recover, str) else "a function"
    return {
        "model": fingerprint(program),
        "budgets": {_NAMES[r]: str(b) for r, b in request.budgets.items()},
        "steps": steps,
        "schedule": schedule,
        **asdict(forms),
        "importance": Importance.among(options).criterion,
        "seed": seed,
        "recover": asdict(recover) if isinstance(recover, TrainConfig) else word,
    }


@dataclass
class _Steps:
    """A pruning on its way: the steps taken so far, and how to take the next."""

    request: Request
    prepared: Prepared
    trail: Trail
    recover: Recovery
    loader: Loader | None
    steps_per_epoch: int | None
    options: dict[str, Any]
    clock: Clock

    def __post_init__(self) -> None:
        self.taken: list[PruneResult] = []
        self.rows: list[dict[str, Any]] = []
        self.program = self.prepared.program
        self.teacher = copy.deepcopy(self.program.module).eval()
        self.latency_left = 1.0  # of the dense network's, as measured
        self.dense = {r: dense_amount(r, self.prepared) for r in self.request.budgets}
        self.final = {
            r: min(b.absolute(self.dense[r]) / self.dense[r], 1.0)
            for r, b in self.request.budgets.items()
        }

    def take(self, step: int, shares: Mapping[str, float]) -> None:
        """Prune so that these shares of the dense network are left, and recover."""
        known = self.trail.plan(step)
        if known is None:
            asked = self._asked(shares)
            result = prune(
                self.program, **asked, **self.options, steps=1, recover=self._first,
                progress=self.clock,
            )  # fmt: skip
            row = self._row(step, shares, result)
            self.trail.keep_plan(step, result.plan, row)
        else:
            plan, row = known
            result = prune(self.program, plan=plan, **self._plain(), progress=self.clock)
        self.latency_left *= float(row.get("ratio", 1.0))
        program = result.program
        if not self.trail.restore(step, program):
            program = self._recovered(step, program)
            self.trail.keep(step, program)
        self.program = program
        self.taken.append(replace(result, program=program, module=program.module))
        self.rows.append(row)

    def _asked(self, shares: Mapping[str, float]) -> dict[str, Any]:
        """The budgets of a step for the network as it is now."""
        asked: dict[str, Any] = {
            _NAMES[r]: max(2, int(share * self.dense[r]))
            for r, share in shares.items()
            if r != LATENCY
        }
        if LATENCY in shares:
            asked["latency"] = f"{100 * min(shares[LATENCY] / self.latency_left, 1.0):.4f}%"
        return asked

    def _plain(self) -> dict[str, Any]:
        """The options of a step whose plan is known: its weights are known or made next."""
        names = ("target", "threads", "seed", "calibrate")
        return {n: self.options[n] for n in names if n in self.options} | {"recover": self._first}

    @property
    def _first(self) -> str:
        """What `prune` itself is to recover: all, before training what inputs allow, or nothing."""
        if isinstance(self.recover, str):
            return self.recover
        return "auto" if isinstance(self.recover, TrainConfig) else "none"

    def _row(self, step: int, shares: Mapping[str, float], result: PruneResult) -> dict[str, Any]:
        """What a step did, as JSON data."""
        report = result.report
        row: dict[str, Any] = {
            "step": step,
            "asked": {_NAMES[r]: share for r, share in shares.items()},
            "params": report["pruned"]["params"],
            "macs": report["pruned"]["macs"],
            "certificate": report["certificate"],
        }
        return row | ({"ratio": report["ratio"]} if "ratio" in report else {})

    def _recovered(self, step: int, program: Program) -> Program:
        if isinstance(self.recover, TrainConfig):
            assert self.loader is not None
            config = replace(self.recover, seed=self.recover.seed + step)
            length = self.steps_per_epoch or len(self.loader)  # type: ignore[arg-type]
            with self.clock.stage(f"train, step {step}") as advance:
                done = finetune(
                    program.module, self.loader, length, config, teacher=self.teacher,
                    checkpoint=self.trail.training(step),
                    progress=lambda s: advance(
                        s.epoch * length + s.index + 1, config.epochs * length
                    ),
                )  # fmt: skip
            if done.stopped:
                raise HwpruneError(done.stopped, where=f"pruning step {step}", hint="lower lr")
        elif callable(self.recover):
            with self.clock.stage(f"recover, step {step}"):
                return recover_by(self.recover, program)
        return program

    def result(self) -> PruneResult:
        """All steps as one pruning of the original."""
        prepared, first, last = self.prepared, self.taken[0], self.taken[-1]
        stages = [Stage(r.dense, r.coupling, r.plan, r.program) for r in self.taken]
        kept = kept_through(stages)
        plan = replace(compose(stages, kept), predicted=last.plan.predicted)
        certificate = join([r.certificate for r in self.taken])
        allocation = replace(last.outcome.allocation, kept=plan.kept)
        outcome = Outcome(allocation, plan, last.program, last.outcome.timing)
        images = self.options.get("calibrate")
        facts = Facts(
            prepared, {}, self.request.budgets, replace(outcome, timing=None), certificate,
            last.program, [], images if isinstance(images, Tensor) else None, self.clock.seconds,
        )  # fmt: skip
        report = account(facts) | {"steps": self.rows}
        if LATENCY in self.request.budgets:
            self._add_latency(report)
        return PruneResult(
            last.module, plan, kept, report, last.program, prepared.program, prepared.coupling,
            certificate, first.target, first.threads, outcome,
        )  # fmt: skip

    def _add_latency(self, report: dict[str, Any]) -> None:
        """Of the original and the last network: timed alternately, or predicted where not here."""
        target, threads = self.request.target, self.request.threads
        programs = self.prepared.program, self.program
        if not is_timed(target, None):
            add_estimate(report, estimate_pair(*programs, target, threads))
            return
        with self.clock.stage("measure"):
            built = [build(p, target, threads) for p in programs]
            add_latency(report, interleaved(built[0].artifact, built[1].artifact))
