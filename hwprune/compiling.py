"""From any model, pruned or not, to an artifact of a device.

`compile` takes a model as it is; `compile_pruned` prunes it first, measures both side by side, and
writes the directory with its report.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from torch import Tensor

from hwprune.account_latency import add_estimate
from hwprune.atomic import check_writable
from hwprune.bench import Network, is_timed
from hwprune.build import build
from hwprune.cuda_runtime import why_not_here
from hwprune.deploy import Artifact
from hwprune.estimate import estimate_pair
from hwprune.final_latency import add_measured
from hwprune.given import Model, as_images, as_program
from hwprune.pipeline import prune
from hwprune.progress import Clock, Progress, Silent
from hwprune.remote.address import Boards
from hwprune.request import read_target
from hwprune.result import PruneResult, save
from hwprune.target import FLOAT32


def compile(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    target: str = "host",
    threads: int = 1,
    dtype: str = FLOAT32,
    calibrate: Tensor | Sequence[Tensor] | None = None,
    progress: Progress | None = None,
    name: str = "",
) -> Artifact:
    """Compile any model, pruned or not, for a device; checked against PyTorch.

    In float16 `calibrate`, unlabelled inputs (N, …), shows with the example inputs whether values
    leave its range.
    """
    clock = Clock(progress or Silent())
    chosen = read_target(target, threads, compiles=True, dtype=dtype)
    with clock.stage("capture"):
        program = as_program(model, inputs, name)
    with clock.stage("compile"):
        return build(program, chosen, threads, as_images(calibrate, program)).artifact


def compile_pruned(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    out: str | PathLike[str],
    target: str = "host",
    threads: int = 1,
    boards: Boards | None = None,
    dtype: str = FLOAT32,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[PruneResult, Artifact]:
    """Prune, compile, measure dense and pruned side by side, and write the artifact directory.

    For a device that is not here both latencies are predicted, and the report says so. A GPU is
    here where TVM finds one of the target's architecture.
    """
    check_writable(out)
    read_target(target, threads, compiles=True, dtype=dtype)
    clock = Clock(progress or Silent())
    result = prune(
        model, inputs, target=target, threads=threads, boards=boards, dtype=dtype, progress=clock,
        **options,
    )  # fmt: skip
    timing = result.outcome.timing
    with clock.stage("compile pruned"):
        images = as_images(options.get("calibrate"), result.dense)
        final = build(result.program, result.target, threads, images)
    result.report["max_rel_error_compiled"] = final.max_rel_error
    result.report["ran_on"] = final.checked_by
    result.report["dtype"] = dtype
    if result.target.gpu is not None and not final.artifact.loaded:
        reason = why_not_here(result.target.gpu.architecture)
        result.report["not_run"] = reason or "it is another machine's"
    if not is_timed(result.target, boards):
        _predicted_latency(result)
    elif boards is not None or final.artifact.loaded:
        if timing is None:
            with clock.stage("compile dense"):
                dense = build(result.dense, result.target, threads)
        else:
            dense = timing.dense
        with clock.stage("measure"):
            networks = Network(dense, result.dense), Network(final, result.program)
            add_measured(result.report, boards, *networks, result.target)
    result.report["seconds"] = {k: round(v, 2) for k, v in clock.seconds.items()}
    save(result, final.artifact, out)
    return result, final.artifact


def _predicted_latency(result: PruneResult) -> None:
    """Of a device that is not here, where the search has not asked for it yet."""
    if result.outcome.estimate is None:
        found = estimate_pair(result.dense, result.program, result.target, result.threads)
        add_estimate(result.report, found)
