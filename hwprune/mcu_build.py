"""A network for a microcontroller: capture, prune, quantize, lower to C, run on an emulator.

In: a model and a target of kind "mcu". Out: `McuResult`, and the artifact's folder. Instructions
are counted by the emulator; cycles and milliseconds come from a model of the core and say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from hwprune.atomic import check_writable
from hwprune.budget import FLASH, LATENCY, MACS, PARAMS, SRAM, Budget, parse_budget
from hwprune.capture import Program
from hwprune.emulator.cycles import Estimate
from hwprune.errors import BudgetError, HwpruneError
from hwprune.forms import Forms
from hwprune.given import Model, as_images, as_program
from hwprune.gradual import Gradual, check_steps
from hwprune.importance import Importance
from hwprune.latency import Outcome
from hwprune.lower.mcu.model import CModel
from hwprune.mcu_folder import describe, write_folder
from hwprune.mcu_price.account import compare
from hwprune.mcu_price.bounds import check_device
from hwprune.mcu_price.fallbacks import facts
from hwprune.mcu_price.network import (
    Network,
    build_network,
    calibration_inputs,
    emulated_target,
)
from hwprune.mcu_price.prepared import prepare_mcu
from hwprune.mcu_price.search import Asked, meet
from hwprune.mcu_program import Run, Vectors
from hwprune.pipeline import prune
from hwprune.progress import Clock, Progress, Silent
from hwprune.quantize.config import QuantConfig
from hwprune.quantize.quantizer import Quantized
from hwprune.repair import check_recovery, repair
from hwprune.stages import Stage, certify, kept_through
from hwprune.target import Target
from hwprune.threshold import check_threshold, weak_units

_BUDGETS = {"latency": LATENCY, "macs": MACS, "params": PARAMS, "sram": SRAM, "flash": FLASH}


@dataclass(frozen=True)
class McuResult:
    """A network in C, what the emulator counted, what the core's model makes of it.

    `program` is the float network that the integers stand for, pruned and recovered: what to train
    further.
    """

    program: Program
    quantized: Quantized
    model: CModel
    vectors: Vectors
    run: Run
    estimate: Estimate
    report: dict[str, Any]


def compile_mcu(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    out: str | PathLike[str],
    target: str = "cortex-m4",
    calibrate: Tensor | Sequence[Tensor] | None = None,
    budgets: Mapping[str, Any] | None = None,
    pruning: Mapping[str, Any] | None = None,
    config: QuantConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    name: str = "",
) -> McuResult:
    """Compile a network to int8 C and write its folder, checked on the emulated board.

    Args:
        calibrate: unlabelled inputs, (N, …); without, random ones, which the report says.
        budgets: any of `latency`, `sram`, `flash`, `macs`, `params` and `threshold`, or a `plan` of
            `hwprune.prune`, or none.
        pruning: other arguments of `hwprune.prune`.
        config: how to quantize; with `float_fallback` operators without an int8 kernel run in
            float32, which the report names.

    Raises a HwpruneError subclass for everything that a user can cause: no microcontroller, no
    compiler or emulator, operators without a kernel, budgets out of reach, a network that does not
    fit.
    """
    check_writable(out)
    chosen = emulated_target(target)
    asked = {key: value for key, value in (budgets or {}).items() if value is not None}
    limits = _read_budgets(asked)
    options = dict(pruning or {})
    clock = Clock(progress or Silent())
    torch.manual_seed(seed)
    with clock.stage("capture"):
        program = as_program(model, inputs, name)
        images = as_images(calibrate, program)
    given, said = calibration_inputs(program, images, seed)
    more: dict[str, Any] = {}
    if limits:
        flow = _Flow(program, chosen, images, given, options, config, seed, clock)
        network, more = flow.meet(limits, check_threshold(asked.get("threshold")))
    else:
        if asked:
            program = prune(
                program, calibrate=images, seed=seed, progress=progress, **asked, **options
            ).program
        with clock.stage("build"):
            network = build_network(program, chosen, given, config)
        check_device(network, chosen)
    report = {
        **describe(network, chosen, said),
        "bit_exact": network.bit_exact,
        "float_operators": facts(network.model.graph),
        "output_steps": network.vectors.steps,
        **more,
    }
    report["seconds"] = {stage: round(seconds, 2) for stage, seconds in clock.seconds.items()}
    write_folder(network, chosen, report, out)
    return McuResult(
        network.program, network.quantized, network.model, network.vectors, network.run,
        network.estimate, report,
    )  # fmt: skip


def _read_budgets(asked: Mapping[str, Any]) -> dict[str, Budget]:
    """The budgets by resource. Raises BudgetError for one that is malformed, or beside a plan."""
    found = {
        resource: parse_budget(asked.get(word), resource) for word, resource in _BUDGETS.items()
    }
    budgets = {resource: budget for resource, budget in found.items() if budget is not None}
    if "plan" in asked and (budgets or "threshold" in asked):
        raise BudgetError(
            "a plan and a budget exclude each other", where="plan", hint="pass one of them"
        )
    return budgets


@dataclass(frozen=True)
class _Flow:
    """A search under budgets of the device: what it needs, and how its plans are finished."""

    program: Program
    target: Target
    images: Tensor | None
    given: Tensor
    options: Mapping[str, Any]
    config: QuantConfig | None
    seed: int
    clock: Clock

    def meet(
        self, budgets: Mapping[str, Budget], threshold: float | None
    ) -> tuple[Network, dict[str, Any]]:
        """The network that meets the budgets, and what the report says of the search."""
        recover = self.options.get("recover", "auto")
        check_recovery(recover, self.images is not None)
        steps = check_steps(self.options.get("steps"), self.images is not None)
        importance = replace(Importance.among(self.options), seed=self.seed)
        importance.check(self.images is not None)
        weighed = importance.weighed(self.images is not None)
        forms = Forms.asked(self.options, weighed).checked()
        with self.clock.stage("quantize dense"):
            ready = prepare_mcu(self.program, self.target, forms, self.given, self.config)
        prepared, coupling = ready.prepared, ready.prepared.coupling
        if not prepared.candidates:
            raise HwpruneError(
                "nothing can be pruned", where=self.program.name, hint="see hwprune inspect"
            )
        with self.clock.stage("score") as advance:
            scorer = importance.read(self.program).on(self.images)
            scores, energies = scorer.scored(self.program, coupling, advance)
        weak = {} if threshold is None else weak_units(energies.groups, coupling, threshold)

        def finish(outcome: Outcome) -> Program:
            stage = Stage(self.program, coupling, outcome.plan, outcome.program)
            with self.clock.stage("verify"):
                certify([stage], self.seed).check()
            kept = kept_through([stage])
            return repair(recover, prepared, outcome, kept, self.images, self.seed, self.clock)[0]

        gradual = Gradual(scorer, steps, self.seed)
        asked = Asked(scores, budgets, self.given, finish, weak, self.config, gradual)
        found = meet(ready, asked, self.clock)
        return found.pruned, compare(ready, found, budgets, self.images, self.given)
