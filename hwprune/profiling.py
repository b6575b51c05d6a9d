"""`profile`: the kernels of a model over their widths, into the latency table of its target.

In: a model, a target. Out: a `ProfileResult`. Kernels run here, on boards or on an emulated board,
or are predicted for a device that is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from torch import Tensor

from hwprune.bench import open_bench
from hwprune.estimate import describe_model
from hwprune.forms import AUTO, HEADS, Forms
from hwprune.given import Model, as_program
from hwprune.mcu_price.profile import check_single, profile_emulated
from hwprune.obtain import is_predicted
from hwprune.prepare import measure_kernels, prepare
from hwprune.profile_gpu import profile_gpu
from hwprune.progress import Clock, Progress, Silent
from hwprune.remote.address import Boards
from hwprune.request import check_boards, read_target
from hwprune.result import ProfileResult
from hwprune.target import FLOAT32, load_target

__all__ = ["ProfileResult", "profile"]


def profile(
    model: Model,
    inputs: Sequence[Tensor] | None = None,
    *,
    target: str = "host",
    attention: str = HEADS,
    grouped: str = AUTO,
    group_norm: str = AUTO,
    branches: bool = True,
    threads: int = 1,
    boards: Boards | None = None,
    dtype: str = FLOAT32,
    progress: Progress | None = None,
    name: str = "",
) -> ProfileResult:
    """Fill the target's latency table for this model's kernels; resumes where it was stopped.

    `boards` to measure on (`hwprune.remote.address.read_boards`); None is this machine, or the
    emulated board of a microcontroller.
    """
    forms = Forms(attention, grouped, group_norm, branches).checked()
    clock = Clock(progress or Silent())
    if load_target(target).kind == "mcu":
        check_single(threads, boards)
        return profile_emulated(model, inputs, target, forms, clock, name)
    chosen = read_target(target, threads, measures=boards is None, dtype=dtype)
    check_boards(chosen, boards)
    if chosen.gpu is not None:
        return profile_gpu(lambda: as_program(model, inputs, name), chosen, forms, clock)
    with clock.stage("capture"):
        program = as_program(model, inputs, name)
    prepared = prepare(program, chosen, threads, **asdict(forms))
    predicted = boards is None and is_predicted(chosen)
    what = "predict kernels" if predicted else "measure kernels"
    with open_bench(chosen, threads, boards) as bench, clock.stage(what) as advance:
        done = measure_kernels(prepared, bench.table, advance, bench.boards)
        path = str(bench.table.path)
        failed = bench.table.failures(done.failed, threads)
    return ProfileResult(
        done.measured, done.reused, failed, done.seconds, path,
        predicted=done.predicted, model=describe_model(chosen, threads) if predicted else "",
        board=bench.board, warnings=bench.warnings,
    )  # fmt: skip
