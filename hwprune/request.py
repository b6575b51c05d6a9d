"""What is asked for, checked before any long work: budgets or a plan, on a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hwprune.budget import LATENCY, MACS, PARAMS, Budget, parse_budget
from hwprune.dtype import in_dtype
from hwprune.errors import BudgetError, HwpruneError
from hwprune.llvm_target import check_llvm
from hwprune.obtain import is_predicted
from hwprune.plan import Plan
from hwprune.predict.calibration import find_model
from hwprune.predict.device import device_of
from hwprune.remote.address import Boards
from hwprune.target import FLOAT32, Target, check_code, check_runnable, load_target
from hwprune.threshold import check_threshold
from hwprune.toolchain import linker

UNMEASURED = "leave --rpc and --tracker out: latencies are predicted"


@dataclass(frozen=True)
class Request:
    """Budgets by resource and a threshold, or the plan to apply and where it comes from."""

    target: Target
    threads: int
    budgets: Mapping[str, Budget]
    plan: Plan | None = None
    source: str = ""
    threshold: float | None = None
    boards: Boards | None = None


def read_request(
    *,
    target: str,
    threads: int,
    latency: str | float | None = None,
    macs: str | float | None = None,
    params: str | float | None = None,
    plan: Plan | str | Path | None = None,
    threshold: float | None = None,
    boards: Boards | None = None,
    dtype: str = FLOAT32,
    compiles: bool = False,
) -> Request:
    """Read what `prune` is given; `compiles` says that the result is compiled here as well.

    A latency is measured on `boards`, or here where they are None.

    Raises HwpruneError where it is malformed, contradictory, or this machine cannot do it.
    """
    given = {LATENCY: latency, MACS: macs, PARAMS: params}
    parsed = {resource: parse_budget(text, resource) for resource, text in given.items()}
    budgets = {resource: budget for resource, budget in parsed.items() if budget is not None}
    floor = check_threshold(threshold)
    if plan is not None and (budgets or floor is not None):
        raise BudgetError(
            "a plan and a budget exclude each other", where="plan", hint="pass one of them"
        )
    if not budgets and plan is None and floor is None:
        raise BudgetError(
            "no budget given", hint="pass latency, macs, params or threshold; or a plan"
        )
    if boards is not None and LATENCY not in budgets and not compiles:
        raise HwpruneError("there is no latency to measure", where="boards", hint="leave them out")
    timed = LATENCY in budgets
    chosen = read_target(
        target, threads, measures=timed and boards is None, compiles=compiles, dtype=dtype
    )
    check_boards(chosen, boards)
    if timed and (boards is not None or not is_predicted(chosen)):
        linker(chosen)
    if isinstance(plan, str | Path):
        return Request(chosen, threads, budgets, Plan.load(plan), str(plan), None, boards)
    source = "given by the caller" if plan else ""
    return Request(chosen, threads, budgets, plan, source, floor, boards)


def check_boards(target: Target, boards: Boards | None) -> None:
    """Raise HwpruneError where boards are asked for that kernels are not measured on."""
    if boards is not None and target.gpu is not None:
        raise HwpruneError(
            "the kernels of GPUs are not measured over RPC",
            where=f"target {target.name!r}",
            hint="run hwprune profile on the machine that has the GPU, and copy its table",
        )
    if boards is not None and target.dtype != FLOAT32:
        raise HwpruneError(
            f"networks in {target.dtype} are not measured on boards yet",
            where="dtype",
            hint=UNMEASURED,
        )


def read_target(
    name: str,
    threads: int,
    *,
    measures: bool = False,
    compiles: bool = False,
    dtype: str = FLOAT32,
) -> Target:
    """The target of this name, computing in a type (`hwprune.dtype`).

    Whether kernels are measured, and a network compiled, for it here.

    Kernels of a device that is not here are predicted instead. Raises HwpruneError where this
    machine cannot do that.
    """
    target = in_dtype(load_target(name), dtype)
    if threads < 1:
        raise HwpruneError(f"{threads} threads", where="threads", hint="at least 1")
    if measures and is_predicted(target):
        find_model(target, device_of(target, threads))
    elif measures:
        check_runnable(target)
    if compiles:
        if target.runner == "local":
            check_code(target)
        linker(target)
    if measures or compiles:
        check_llvm(target)
    return target
