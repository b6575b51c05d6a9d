"""`Row`: one kernel's latency with its source; what is wrong with one.

In: nothing but a `Workload`. Out: the rows of `LatencyTable`s and of their text files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwprune.lower.spec import Workload

SOURCES = ("device", "emulator", "model")  # the better first


@dataclass(frozen=True)
class Row:
    """One kernel's latency on the table's machine, in microseconds.

    `failure` is the reason why it could not be measured; the times are NaN then.
    """

    workload: Workload
    threads: int
    median_us: float
    p10_us: float
    p90_us: float
    repeats: int
    source: str = "device"  # "device" | "emulator" | "model"
    failure: str = ""
    versions: str = ""
    date: str = ""


def check_times(row: Row) -> str:
    """What is wrong with a row's times and repeats; empty if nothing is."""
    times = (row.median_us, row.p10_us, row.p90_us)
    if row.failure:
        return ""
    if not all(isinstance(t, float) and 0 < t < math.inf for t in times):
        return "times {!r}, {!r}, {!r}".format(*times)
    if not row.p10_us <= row.median_us <= row.p90_us:
        return f"median {row.median_us} outside [{row.p10_us}, {row.p90_us}]"
    return ""


def describe(workload: Workload) -> str:
    """A kernel in a few words: operation, shapes and epilogue."""
    shapes = " ".join("x".join(map(str, t.shape)) for t in (*workload.inputs, *workload.params))
    output = "x".join(map(str, workload.output.shape))
    steps = "".join(f"+{step.op}" for step in workload.epilogue)
    return f"{workload.op}{steps} {shapes} -> {output}"
