"""int8 for CPUs: capture, prune, quantize, lower, check bit for bit, measure, write.

In: a model and a target of kind "cpu". Out: `Int8Result`, and the artifact's directory. Where the
device is here, the dense network in float32, the dense one in int8 and the pruned one in int8 are
timed in turn; of a device that is not here no latency is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwprune.account import add_latency
from hwprune.atomic import check_writable
from hwprune.bench import Pair, in_turn, ratios
from hwprune.budget import LATENCY, MACS, PARAMS, Budget, parse_budget
from hwprune.build import build
from hwprune.capture import Program
from hwprune.deploy import Artifact
from hwprune.dtype import INT8, check_int8
from hwprune.errors import BudgetError, HwpruneError
from hwprune.forms import Forms
from hwprune.given import HELD_OUT, Model, as_images, as_program
from hwprune.gradual import check_steps
from hwprune.importance import Importance
from hwprune.int8_build import CHECKED, Int8Build, build_int8, check_single_input
from hwprune.int8_search import Asked, Found, meet_latency
from hwprune.mcu_price.network import calibration_inputs
from hwprune.pipeline import prune
from hwprune.progress import Clock, Progress, Silent
from hwprune.quantize.config import QuantConfig
from hwprune.quantize.fidelity import value_fidelity
from hwprune.quantize.quantizer import quantize_program
from hwprune.recover import fidelity
from hwprune.request import read_target
from hwprune.result import PruneResult, result_files
from hwprune.target import Target
from hwprune.threshold import check_threshold

REPORT = "report.json"
_BUDGETS = ("macs", "params", "threshold")


@dataclass(frozen=True)
class Int8Result:
    """What was compiled: `pruned` is None where the network was left as it is."""

    built: Int8Build
    report: dict[str, Any]
    pruned: PruneResult | None = None

    @property
    def artifact(self) -> Artifact:
        """The compiled network."""
        return self.built.artifact


def compile_int8(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    out: str | PathLike[str],
    target: str = "host",
    threads: int = 1,
    calibrate: Tensor | Sequence[Tensor] | None = None,
    config: QuantConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    name: str = "",
    **options: Any,
) -> Int8Result:
    """Compile a network in int8 and write its directory, bit for bit as the integer reference.

    Args:
        calibrate: unlabelled inputs, (N, …) float32; without, random ones, which the report says.
        config: how to quantize.
        options: budgets (`latency`, `macs`, `params`, `threshold`), a `plan`, and the other
            arguments of `hwprune.prune`; without a budget or plan the network is left as it is.
            A share of the latency is of the dense network's in int8; kernels are timed here.

    Raises a HwpruneError subclass for everything that a user can cause: no CPU, a latency budget
    for a device that is not here, operators without a kernel, bad calibration data.
    """
    check_writable(out)
    if options.pop("boards", None) is not None:
        raise HwpruneError(
            "networks in int8 are not measured on boards yet", where="boards", hint="leave them out"
        )
    chosen = read_target(target, threads, compiles=True)
    check_int8(chosen)
    budgets = _read_latency(options, chosen)
    clock = Clock(progress or Silent())
    torch.manual_seed(seed)
    with clock.stage("capture"):
        program = as_program(model, inputs, name)
        images = as_images(calibrate, program)
    check_single_input(program)
    given, said = calibration_inputs(program, images, seed)
    flow = _Flow(program, images, given, config, clock)
    found = flow.search(budgets, chosen, threads, seed, options) if budgets else None
    if found is not None:
        options = {k: v for k, v in options.items() if k not in _BUDGETS} | {"plan": found.plan}
    pruned = flow.prune(chosen.name, threads, seed, options)
    after = program if pruned is None else pruned.program
    with clock.stage("quantize"):
        quantized = quantize_program(after, given, config)
    with clock.stage("compile"):
        built = build_int8(quantized, chosen, threads, given)
    report = flow.report(built, pruned, said)
    if found is not None:
        report["latency_search"] = found.facts
        report["plan"] = f"latency {budgets[LATENCY]} of the dense network in int8"
        if not budgets[LATENCY].relative:
            report["plan"] = f"latency {budgets[LATENCY]} in int8"
    report["seconds"] = {k: round(v, 2) for k, v in clock.seconds.items()}
    _write(built, pruned, report, out)
    return Int8Result(built, report, pruned)


def _read_latency(options: dict[str, Any], target: Target) -> dict[str, Budget]:
    """The budgets by resource where a latency is among them; it is taken out of the options.

    Raises BudgetError for one beside a plan, or where no kernel can be timed.
    """
    latency = options.pop("latency", None)
    if latency is None:
        return {}
    if options.get("plan") is not None:
        raise BudgetError(
            "a plan and a budget exclude each other", where="plan", hint="pass one of them"
        )
    if target.runner != "local":
        raise BudgetError(
            f"int8 kernels are timed, and {target.name} is not this machine",
            where="latency",
            hint="budget macs or params, or compile in float32, where latencies are predicted",
        )
    asked = {LATENCY: latency, MACS: options.get("macs"), PARAMS: options.get("params")}
    budgets = {resource: parse_budget(text, resource) for resource, text in asked.items()}
    return {resource: budget for resource, budget in budgets.items() if budget is not None}


@dataclass(frozen=True)
class _Flow:
    """A network on its way, and what its report is made of."""

    program: Program
    images: Tensor | None
    given: Tensor
    config: QuantConfig | None
    clock: Clock

    def search(
        self,
        budgets: Mapping[str, Budget],
        target: Target,
        threads: int,
        seed: int,
        options: Mapping[str, Any],
    ) -> Found:
        """The plan that meets a latency, and other budgets with it."""
        importance = replace(Importance.among(options), seed=seed)
        forms = Forms.asked(options, importance.weighed(self.images is not None)).checked()
        threshold = check_threshold(options.get("threshold"))
        asked = Asked(
            self.program, target, threads, budgets, self.given, self.images, forms, importance,
            threshold, self.config, check_steps(options.get("steps"), self.images is not None),
            seed,
        )  # fmt: skip
        return meet_latency(asked, self.clock)

    def prune(
        self, target: str, threads: int, seed: int, options: Mapping[str, Any]
    ) -> PruneResult | None:
        """The smaller network in float32; None where no budget and no plan is given."""
        asked = {k: v for k, v in options.items() if v is not None}
        if not asked.keys() & {"macs", "params", "threshold", "plan"}:
            return None
        return prune(
            self.program, target=target, threads=threads, seed=seed, calibrate=self.images,
            progress=self.clock, **asked,
        )  # fmt: skip

    def report(self, built: Int8Build, pruned: PruneResult | None, said: str) -> dict[str, Any]:
        """report.json: that of pruning where there was any, and what int8 changes."""
        lowered = built.lowered
        report: dict[str, Any] = {} if pruned is None else pruned.report
        report |= {
            "model": self.program.name,
            "target": lowered.target.name,
            "threads": lowered.threads,
            "dtype": INT8,
            "calibration": said,
            "bit_exact": built.checked,
            "ran_on": built.checked_by,
            "unit": next(iter({r for rule, r in lowered.rules.values() if "conv" in rule}), ""),
            "arena_bytes": lowered.arena.size_bytes,
            "operators": built.quantized.graph.summary()["operators"],
            "agreement": self._agreement(built),
            "values": self._values(built),
        }
        if pruned is not None:
            constants = built.quantized.graph.summary()["constant_bytes"]
            report["pruned"]["weight_bytes"] = constants
        if built.artifact.loaded:
            report["int8_latency"] = self._measure(built, pruned, report)
        return report

    def _agreement(self, built: Int8Build) -> dict[str, Any]:
        """With the dense network in float32, on images that recovery has not seen if there are."""
        held = self.given if self.images is None else self.images[::HELD_OUT]
        found = fidelity(_runner(self.program), lambda batch: built.quantized(batch)[0], held)
        kind = "random inputs" if self.images is None else "calibration inputs kept from recovery"
        return found | {"images": len(held), "on": kind}

    def _values(self, built: Int8Build) -> list[dict[str, Any]]:
        """What int8 costs value by value, in network order: signal over noise, in decibels."""
        rows = value_fidelity(built.quantized, self.given[:CHECKED])
        return [
            {
                "name": row.name,
                "kind": row.kind,
                "snr_db": round(row.snr_db, 2) if isfinite(row.snr_db) else None,
                "within_one_step": row.within_one_step,
            }
            for row in rows
        ]

    def _measure(
        self, built: Int8Build, pruned: PruneResult | None, report: dict[str, Any]
    ) -> dict[str, Any]:
        """Median microseconds here of the dense network in float32 and int8 and the pruned one."""
        target, threads = built.lowered.target, built.lowered.threads
        with self.clock.stage("compile dense"):
            artifacts = {"dense_float32": build(self.program, target, threads).artifact}
            if pruned is not None:
                whole = quantize_program(self.program, self.given, self.config)
                dense = build_int8(whole, target, threads, self.given)
                artifacts["dense_int8"] = dense.artifact
        artifacts["dense_int8" if pruned is None else "pruned_int8"] = built.artifact
        with self.clock.stage("measure"):
            times = in_turn(tuple(artifacts.values()))
        medians = [float(us) for us in np.median(times, axis=(0, 2))]
        shares = [float(share) for share in ratios(times)]
        if pruned is not None:
            add_latency(report, Pair(medians[0], medians[-1], shares[-1]))
        return {
            "source": "device",
            "us": dict(zip(artifacts, medians, strict=True)),
            "ratio": dict(zip(artifacts, shares, strict=True)),
        }


def _runner(program: Program) -> Callable[[Tensor], Any]:
    def run(batch: Tensor) -> Any:
        if program.dynamic_batch:
            return program.module(batch)
        return torch.cat([program.module(x[None]) for x in batch])

    return run


def _write(
    built: Int8Build,
    pruned: PruneResult | None,
    report: dict[str, Any],
    out: str | PathLike[str],
) -> None:
    if pruned is not None:
        built.artifact.save(out, result_files(pruned))
        return
    text = json.dumps(report, indent=1, default=float) + "\n"
    built.artifact.save(out, {REPORT: text.encode()})
