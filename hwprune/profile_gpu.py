"""`profile_gpu`: measure a network's kernels on this machine's GPU, into the table of its kind.

In: how the network is captured, a `Target` of kind "cuda". Out: a `ProfileResult`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from hwprune.forms import Forms
from hwprune.measure_cuda import measure_gpu, open_gpu
from hwprune.prepare import prepare
from hwprune.price import required
from hwprune.program import Program
from hwprune.progress import Clock
from hwprune.result import ProfileResult
from hwprune.target import Target


def profile_gpu(
    captured: Callable[[], Program], target: Target, forms: Forms, clock: Clock
) -> ProfileResult:
    """Measure what pricing the network needs; whether there is a GPU is said before long work.

    Raises what `open_gpu` and `measure_gpu` raise.
    """
    with open_gpu(target) as gpu:
        with clock.stage("capture"):
            program = captured()
        prepared = prepare(program, target, 1, **asdict(forms))
        needed = required(prepared.sites, prepared.candidates)
        with clock.stage("measure kernels") as advance:
            done = measure_gpu(gpu, needed, advance)
        path, board = str(gpu.table.path), f"{gpu.facts.name}, level 2 not flushed"
        failed = gpu.table.failures(needed, 1)
    return ProfileResult(done.measured, done.reused, failed, done.seconds, path, board=board)
