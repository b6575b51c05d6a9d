"""A GPU's latency table, as it ships: which kernels, how long it takes, and measuring them.

    python -m benchmarks.gpu_table plan [--target NAME]           # anywhere; no GPU needed
    python -m benchmarks.gpu_table run --out table.txt [--minutes 25] [--target NAME]

The kernels of ResNet-50, MobileNetV2 and EfficientNet-Lite0 over their widths at batches 1, 32 and
256 in float16 and float32, float16 first. `run` stops in time, writes what there is, and goes on
from there when it is started again. `plan` counts them, and says how long they take: the replays
by the target's model, compiling by what nvcc takes here for a few. docs/cuda.md says how the table
comes to its target.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import common
from hwprune.dtype import in_dtype
from hwprune.errors import HwpruneError
from hwprune.lower.kernels import kernel_for
from hwprune.lower.spec import Workload
from hwprune.measure_cuda import (
    BATCH,
    GRAPH_US,
    LAUNCHES,
    REPEATS,
    GpuTable,
    compiled,
    measure_gpu,
    open_gpu,
)
from hwprune.predict.fill import predict
from hwprune.prepare import prepare
from hwprune.price import required
from hwprune.program import Program
from hwprune.target import Target, load_target

TARGET = "nvidia-h200"
NETWORKS = ("resnet50", "mobilenet_v2", "efficientnet_lite0")
BATCHES, DTYPES = (256, 32, 1), ("float16", "float32")
MINUTES = 25.0
AT_ONCE = 4 * BATCH  # kernels between two looks at the clock
SAMPLE = 12  # kernels that are compiled to say how long it takes


@dataclass(frozen=True)
class Part:
    """The kernels of a network at a batch, in a type, that no part before has."""

    network: str
    batch: int
    target: Target
    kernels: tuple[Workload, ...]

    @property
    def title(self) -> str:
        return f"{self.network}, batch {self.batch}, {self.target.dtype}"


def plan_parts(
    name: str,
    networks: Sequence[str] = NETWORKS,
    batches: Sequence[int] = BATCHES,
    dtypes: Sequence[str] = DTYPES,
) -> list[Part]:
    """What is to be measured, the most wanted first. Raises TargetError for what is no GPU."""
    known: set[Workload] = set()
    parts = []
    for dtype in dtypes:
        target = in_dtype(load_target(name), dtype)
        for network in networks:
            for batch in batches:
                prepared = prepare(_program(network, batch), target, 1)
                needed = required(prepared.sites, prepared.candidates)
                fresh = tuple(work for work in needed if work not in known)
                known.update(fresh)
                parts.append(Part(network, batch, target, fresh))
    return parts


def _program(network: str, batch: int) -> Program:
    from examples.models import build, example_input
    from hwprune.capture import capture

    return capture(build(network).eval(), (example_input(network, batch),), name=network)


def replays_s(part: Part) -> float:
    """Seconds that the replays of a part take, by the target's model: warm-ups are replays too."""
    total_us = 0.0
    for work in part.kernels:
        once_us = predict(work, part.target, 1).median_us
        total_us += 2 * LAUNCHES[0] * once_us  # how many fit a graph
        total_us += (REPEATS + 1) * max(GRAPH_US, LAUNCHES[0] * once_us)
    return total_us / 1e6


def compile_s(part: Part, sample: int = SAMPLE) -> float:
    """Seconds that a kernel of a part takes to compile here, one core; of a few over its widths."""
    some = part.kernels[:: max(1, len(part.kernels) // sample)][:sample]
    start = time.perf_counter()
    compiled([kernel_for(work, part.target, 1) for work in some], part.target)
    return (time.perf_counter() - start) / len(some)


def show_plan(parts: Sequence[Part]) -> None:
    """Print how many rows there are and how long they take."""
    seconds = [replays_s(part) for part in parts]
    rows = [(p.title, str(len(p.kernels)), f"{s:.0f}") for p, s in zip(parts, seconds, strict=True)]
    count = sum(len(part.kernels) for part in parts)
    rows.append(("all", str(count), f"{sum(seconds):.0f}"))
    common.table("kernels to measure", ("of", "rows", "replays, model (s)"), rows, text=1)
    each_s = compile_s(parts[0])
    common.console.print(
        f"{count} rows; compiling takes {each_s:.2f} s a kernel on a core of this machine, "
        f"{count * each_s / 60:.0f} core minutes in all, beside the replays"
    )


def run(parts: Sequence[Part], minutes: float) -> int:
    """Measure until all is there or the time is over; how many rows are missing then."""
    deadline = time.monotonic() + 60 * minutes
    missing = 0
    for part in parts:
        with open_gpu(part.target) as gpu:
            missing += measure_until(gpu, part.kernels, deadline)
        common.console.print(f"{part.title}: done, {missing} rows missing so far")
    return missing


def measure_until(gpu: GpuTable, kernels: Sequence[Workload], deadline: float) -> int:
    """Measure some at a time until a moment of `time.monotonic`; how many are missing then."""
    for begin in range(0, len(kernels), AT_ONCE):
        if time.monotonic() >= deadline:
            break
        measure_gpu(gpu, kernels[begin : begin + AT_ONCE])
    return len(gpu.table.missing(kernels, 1))


def write(target: str, out: Path) -> int:
    """What the store has of a target, as the file that ships; how many rows it has."""
    from hwprune.tables import write_document
    from hwprune.tables.store import export

    document = export(target)
    write_document(document, out)
    return len(document.entries)


def main(argv: Sequence[str] | None = None) -> None:
    """Plan, or measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("what", choices=("plan", "run"))
    parser.add_argument("--target", default=TARGET)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--out", type=Path, default=Path("table.txt"))
    args = parser.parse_args(argv)
    if args.what == "plan":
        show_plan(plan_parts(args.target))
        return
    with open_gpu(load_target(args.target)):
        pass  # whether it is there is said before long work
    parts = plan_parts(args.target)
    missing = run(parts, args.minutes)
    rows = write(args.target, args.out)
    done = "all" if not missing else f"{missing} are missing: run it again to go on"
    common.console.print(f"{rows} rows in {args.out}; {done}")


if __name__ == "__main__":
    try:
        main()
    except HwpruneError as error:
        sys.exit(f"error: {error}")
