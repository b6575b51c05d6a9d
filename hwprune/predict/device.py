"""The device that a prediction is for: a core or a GPU, and what a kernel asks of it.

In: a `Target`, threads. Out: a `Machine` or a `Gpu`; the counts of a kernel on it; the model that
stands where it has not been calibrated.
"""

from __future__ import annotations

from hwprune.errors import TargetError
from hwprune.gpu import Gpu
from hwprune.lower.spec import Workload
from hwprune.predict.generic import described_model
from hwprune.predict.gpu_described import described_gpu_model
from hwprune.predict.machine import Machine
from hwprune.predict.model import Counts, LatencyModel
from hwprune.target import Target

Device = Machine | Gpu


def device_of(target: Target, threads: int) -> Device:
    """What a target's latencies are predicted from, used by that many threads.

    Raises TargetError naming what the description lacks, or threads that a GPU does not have.
    """
    if target.gpu is None:
        return Machine.of(target, threads)
    if threads != 1:
        raise TargetError(
            f"{threads} threads: a GPU uses all of its multiprocessors",
            where=f"target {target.name}",
            hint="leave --threads at 1",
        )
    return target.gpu


def works_of(workload: Workload, target: Target, threads: int) -> tuple[Counts, ...]:
    """The counts of a kernel as our rules would write it."""
    if target.gpu is not None:
        from hwprune.predict.gpu_planned import gpu_planned_works  # loads TVM's builder

        return gpu_planned_works(workload, target)
    from hwprune.predict.planned import planned_works

    return planned_works(workload, target, threads)


def described(device: Device) -> LatencyModel:
    """The model of a device that nobody has measured."""
    return described_gpu_model() if isinstance(device, Gpu) else described_model()
