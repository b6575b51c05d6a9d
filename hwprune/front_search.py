"""The search over budgets: how good a network stays against how long it takes, measured.

In: a model, latency budgets, a short recovery, and what judges a network: a function, or agreement
with the dense network on held-out inputs. Out: `Front`, kept in a directory (search.json,
search.svg, a folder for each point) from which work goes on.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hwprune.atomic import check_writable, replace_directory, write_text
from hwprune.budget import LATENCY, MACS, PARAMS, parse_budget
from hwprune.build import build
from hwprune.capture import capture
from hwprune.deploy import Artifact
from hwprune.errors import BudgetError, HwpruneError
from hwprune.front import DENSE, FORMAT, MODEL, Front, Point, pareto
from hwprune.given import Model, as_program
from hwprune.latency import ROUNDS, RUNS_A_ROUND
from hwprune.pipeline import prune
from hwprune.prepare import prepare
from hwprune.program import Program, fingerprint
from hwprune.progress import Advance, Clock, Progress, Silent
from hwprune.repair import Recover, check_recovery
from hwprune.report.front import draw_front
from hwprune.request import read_request, read_target
from hwprune.result import PruneResult, export_bytes, save_pruned
from hwprune.ways.trail import Trail, read_json

BUDGETS = ("80%", "65%", "50%", "35%")
SEARCH, PLOT, POINT = "search.json", "search.svg", "point.json"
Judge = Callable[[nn.Module], float]


def search(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    out: str | PathLike[str],
    budgets: Sequence[str | float] = BUDGETS,
    evaluate: Judge | None = None,
    recover: Recover = "auto",
    calibrate: Tensor | None = None,
    target: str = "host",
    threads: int = 1,
    progress: Progress | None = None,
    name: str = "",
    **options: Any,
) -> Front:
    """Prune to every latency budget, recover shortly, and time all networks in turn.

    Args:
        out: the directory; a search that was stopped goes on there.
        evaluate: how good a module is, more is better; without it, the share of held-out
            `calibrate` inputs on which the network answers as the dense one does.
        recover: as `prune` takes it, after every pruning.
        options: further ones of `hwprune.prune`: importance, seed, attention, ...

    A budget that cannot be met is left out. Raises a HwpruneError subclass for all that a user can
    cause.
    """
    clock = Clock(progress or Silent())
    check_writable(out)
    asked = _budgets(budgets)
    check_recovery(recover, calibrate is not None)
    if evaluate is None and calibrate is None:
        raise HwpruneError(
            "nothing judges the networks", where="evaluate", hint="pass evaluate or calibrate"
        )
    read_request(target=target, threads=threads, latency=asked[0])
    with clock.stage("capture"):
        program = as_program(model, inputs, name)
    folder = Path(out)
    word = recover if isinstance(recover, str) else "none" if recover is None else "a function"
    settings = {
        "model": fingerprint(program),
        "target": target,
        "threads": threads,
        "measure": "accuracy" if evaluate is not None else "agreement",
        "recover": word,
        **{k: v for k, v in options.items() if isinstance(v, str | int | float)},
    }
    Trail(folder).begin(settings)
    given = {"target": target, "threads": threads, "recover": recover, "calibrate": calibrate}
    maker = _Maker(program, folder, evaluate, given | options, clock)
    found = [maker.point(budget) for budget in asked]
    missed = tuple(f"{r['budget']}: {r['failed']}" for r in found if "failed" in r)
    rows = [maker.dense(), *(r for r in found if "failed" not in r)]
    if len(rows) == 1:
        raise BudgetError("none can be met", where="budgets", hint=missed[-1])
    with clock.stage("measure") as advance:
        times = _times([folder / r["directory"] / MODEL for r in rows], target, threads, advance)
    front = Front(
        program.name, target, threads, str(settings["measure"]), _points(rows, times),
        missed, str(folder / SEARCH),
    )  # fmt: skip
    write_text(front.path, json.dumps({"format": FORMAT, **asdict(front)}, indent=1) + "\n")
    write_text(folder / PLOT, draw_front(front))
    return front


def _budgets(budgets: Sequence[str | float]) -> list[str]:
    """The budgets as shares of the dense latency, widest first. Raises BudgetError."""
    if isinstance(budgets, str | float) or not budgets:
        raise BudgetError("no budgets given", where="budgets", hint="pass several: 80%, 50%")
    parsed = [parse_budget(text, LATENCY) for text in budgets]
    shares = {b.value for b in parsed if b is not None and b.relative}
    if len(shares) < len(budgets):
        raise BudgetError(
            "a search takes different shares of the dense latency",
            where="budgets",
            hint="like 80%, 65%, 50%",
        )
    return [f"{100 * share:g}%" for share in sorted(shares, reverse=True)]


@dataclass(frozen=True)
class _Maker:
    """Makes the networks of a search, or finds them in its directory."""

    program: Program
    folder: Path
    evaluate: Judge | None
    options: Mapping[str, Any]
    clock: Clock

    def dense(self) -> dict[str, Any]:
        """The network itself."""
        if not (self.folder / DENSE / POINT).exists():
            quality = 1.0 if self.evaluate is None else self._judge(self.program)
            chosen = read_target(self.options["target"], self.options["threads"])
            prepared = prepare(self.program, chosen, self.options["threads"])
            sizes = {r: int(prepared.dense(r)) for r in (MACS, PARAMS)}
            with replace_directory(self.folder / DENSE) as staging:
                (staging / MODEL).write_bytes(export_bytes(self.program))
                (staging / POINT).write_text(json.dumps({"quality": quality, **sizes}))
        return {"budget": "100%", "directory": DENSE, **self._read(DENSE)}

    def point(self, budget: str) -> dict[str, Any]:
        """The network of a budget; `failed` says why it cannot be met."""
        name = f"point-{budget.removesuffix('%')}"
        folder = self.folder / name
        if not (folder / POINT).exists():
            try:
                result = prune(self.program, latency=budget, progress=self.clock, **self.options)
            except BudgetError as error:
                with replace_directory(folder) as staging:
                    (staging / POINT).write_text(json.dumps({"failed": str(error)}))
            else:
                save_pruned(result, folder)
                with replace_directory(folder) as staging:
                    (staging / POINT).write_text(json.dumps(self._notes(result)))
        return {"budget": budget, "directory": name, **self._read(name)}

    def _notes(self, result: PruneResult) -> dict[str, Any]:
        if self.evaluate is not None:
            quality = self._judge(result.program)
        else:
            quality = float(result.report["fidelity"]["top1_agreement"])
        sizes = {key: result.report["pruned"][key] for key in ("params", "macs")}
        return {"quality": quality, **sizes}

    def _judge(self, program: Program) -> float:
        assert self.evaluate is not None
        program.module.eval()
        with self.clock.stage("evaluate"), torch.no_grad():
            quality = float(self.evaluate(program.module))
        if quality != quality:
            raise HwpruneError("gave NaN", where="evaluate", hint="more must be better")
        return quality

    def _read(self, name: str) -> dict[str, Any]:
        return read_json(self.folder / name / POINT)


def _times(files: Sequence[Path], target: str, threads: int, advance: Advance) -> list[list[float]]:
    """Median microseconds of every network in each round, all in turn."""
    chosen = read_target(target, threads, compiles=True)
    artifacts: list[Artifact] = []
    for i, file in enumerate(files):
        artifacts.append(build(capture(file), chosen, threads).artifact)
        advance(i + 1, len(files) + ROUNDS)
    times: list[list[float]] = [[] for _ in files]
    for turn in range(ROUNDS):
        for kept, artifact in zip(times, artifacts, strict=True):
            kept.append(statistics.median(artifact.latencies_us(RUNS_A_ROUND, warmup=1)))
        advance(len(files) + turn + 1, len(files) + ROUNDS)
    return times


def _points(
    rows: Sequence[Mapping[str, Any]], times: Sequence[Sequence[float]]
) -> tuple[Point, ...]:
    """The points with their measured latencies, and which no other beats in both."""
    medians = [statistics.median(found) for found in times]
    ratios = [
        statistics.median(a / b for a, b in zip(found, times[0], strict=True)) for found in times
    ]
    best = pareto([(ratio, r["quality"]) for ratio, r in zip(ratios, rows, strict=True)])
    return tuple(
        Point(
            i, row["budget"], row["quality"], medians[i], ratios[i],
            row["params"], row["macs"], best[i], row["directory"],
        )
        for i, row in enumerate(rows)
    )  # fmt: skip
