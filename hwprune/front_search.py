"""The search over budgets: how good a network stays against how long it takes.

In: a model, latency budgets, a short recovery, and what judges a network: a function, or agreement
with the dense network on held-out inputs. Out: `Front`, kept in a directory (search.json,
search.svg, a folder for each point) from which work goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hwprune.atomic import check_writable, replace_directory, write_text
from hwprune.budget import LATENCY, MACS, PARAMS, parse_budget
from hwprune.errors import BudgetError, HwpruneError
from hwprune.front import DENSE, FORMAT, PROGRAM, Front, Point, pareto
from hwprune.front_times import Latency, source_of, times_of
from hwprune.given import HELD_OUT, Model, as_images, as_program
from hwprune.importance import Importance
from hwprune.pipeline import prune
from hwprune.prepare import prepare
from hwprune.program import Program, fingerprint
from hwprune.progress import Clock, Progress, Silent
from hwprune.remote.address import Boards
from hwprune.repair import Recover, check_recovery
from hwprune.report.front import draw_front
from hwprune.request import read_request, read_target
from hwprune.result import PruneResult, export_bytes, save_pruned
from hwprune.target import FLOAT32
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
    boards: Boards | None = None,
    dtype: str = FLOAT32,
    progress: Progress | None = None,
    name: str = "",
    **options: Any,
) -> Front:
    """Prune to every latency budget, recover shortly, and time all networks in turn.

    For a device that is not here all latencies are predicted, unless there are `boards` of it.

    Args:
        out: the directory; a search that was stopped goes on there.
        evaluate: how good a module is, more is better; without it, the share of held-out
            `calibrate` inputs (every fourth) on which the network's largest output is the dense
            one's. Four inputs at least, and more than one output.
        recover: as `prune` takes it, after every pruning.
        dtype: what the device computes in, of `hwprune.dtype.DTYPES`.
        options: further ones of `hwprune.prune`: importance, seed, attention, ...

    A budget that cannot be met is left out. Raises a HwpruneError subclass for all that a user can
    cause.
    """
    clock = Clock(progress or Silent())
    check_writable(out)
    asked = _budgets(budgets)
    check_recovery(recover, calibrate is not None)
    Importance.among(options).check(calibrate is not None)
    if evaluate is None and calibrate is None:
        raise HwpruneError(
            "nothing judges the networks", where="evaluate", hint="pass evaluate or calibrate"
        )
    place: dict[str, Any] = {"target": target, "threads": threads, "boards": boards, "dtype": dtype}
    request = read_request(latency=asked[0], **place)
    with clock.stage("capture"):
        program = as_program(model, inputs, name)
        images = as_images(calibrate, program)
    if evaluate is None and images is not None:
        _check_agreement(program, images)
    folder = Path(out)
    told = place | {"recover": recover} | options
    settings = {
        "model": fingerprint(program),
        "measure": "accuracy" if evaluate is not None else "agreement",
        "latencies": source_of(request.target, boards),
    }
    Trail(folder).begin(settings | _told(told))
    maker = _Maker(program, folder, evaluate, told | {"calibrate": images}, clock)
    found = [maker.point(budget) for budget in asked]
    missed = tuple(f"{r['budget']}: {r['failed']}" for r in found if "failed" in r)
    rows = [maker.dense(), *(r for r in found if "failed" not in r)]
    if len(rows) == 1:
        raise BudgetError("none can be met", where="budgets", hint=missed[-1])
    with clock.stage("measure") as advance:
        files = [folder / r["directory"] / PROGRAM for r in rows]
        times = times_of(files, target, threads, boards, advance, dtype)
    front = Front(
        program.name, target, threads, settings["measure"], _points(rows, times.latencies),
        missed, str(folder / SEARCH), times.source, times.origin, times.warnings, dtype,
    )  # fmt: skip
    write_text(front.path, json.dumps({"format": FORMAT, **asdict(front)}, indent=1) + "\n")
    write_text(folder / PLOT, draw_front(front))
    return front


def _told(options: Mapping[str, Any]) -> dict[str, str | int | float]:
    """What of the options a search that goes on must have been told again."""
    recover = options["recover"]
    word = "a function" if callable(recover) else recover or "none"
    dtype = {} if options["dtype"] == FLOAT32 else {"dtype": options["dtype"]}
    rest = {k: v for k, v in options.items() if k not in ("recover", "dtype")}
    plain = {k: v for k, v in rest.items() if isinstance(v, str | int | float)}
    return {**plain, "recover": word, **dtype}


def _check_agreement(program: Program, images: Tensor) -> None:
    """Raise HwpruneError where agreement with the dense network would say nothing of a network."""
    if len(images) < HELD_OUT:
        raise HwpruneError(
            f"of {len(images)} inputs none is left to judge by",
            where="calibrate",
            hint=f"give {HELD_OUT} or more, or pass evaluate",
        )
    with torch.no_grad():
        output = tree_leaves(program.module(*program.inputs))[0]
    if output.numel() <= len(output):
        raise HwpruneError(
            "networks with one output always agree on the largest",
            where="evaluate",
            hint="pass a function that judges them",
        )


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
            name, threads = self.options["target"], self.options["threads"]
            chosen = read_target(name, threads, dtype=self.options["dtype"])
            prepared = prepare(self.program, chosen, threads)
            sizes = {r: int(prepared.dense(r)) for r in (MACS, PARAMS)}
            with replace_directory(self.folder / DENSE) as staging:
                (staging / PROGRAM).write_bytes(export_bytes(self.program))
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
        try:
            with self.clock.stage("evaluate"), torch.no_grad():
                found = self.evaluate(program.module)
        except HwpruneError:
            raise
        except Exception as error:
            text = f"your function failed: {type(error).__name__}: {error}"
            raise HwpruneError(text, where="evaluate") from error
        try:
            quality = float(found)
        except (TypeError, ValueError, RuntimeError):
            quality = math.nan
        if not math.isfinite(quality):
            raise HwpruneError(
                f"your function gave {found!r}", where="evaluate", hint="a number, more is better"
            )
        return quality

    def _read(self, name: str) -> dict[str, Any]:
        return read_json(self.folder / name / POINT)


def _points(rows: Sequence[Mapping[str, Any]], found: Sequence[Latency]) -> tuple[Point, ...]:
    """The points with their latencies, and which no other beats in both."""
    best = pareto([(time.ratio, r["quality"]) for time, r in zip(found, rows, strict=True)])
    return tuple(
        Point(
            i, row["budget"], row["quality"], time.median_us, time.ratio, row["params"],
            row["macs"], best[i], row["directory"], time.low_us, time.high_us,
        )
        for i, (row, time) in enumerate(zip(rows, found, strict=True))
    )  # fmt: skip
