"""ResNet-50 in float16 on a GPU: PyTorch's three ways, hwprune dense and pruned.

    python -m benchmarks.cuda build FOLDER             # anywhere with nvcc; no GPU needed
    python -m benchmarks.cuda run FOLDER [--out FILE]  # on the GPU, under ten minutes

`build` writes artifacts for every batch: dense, pruned to half the latency, and pruned to as many
multiply-accumulates as take that latency (`benchmarks.cuda_plans`); plans.json says what is kept.
`run` times them beside PyTorch eager, a CUDA graph and torch.compile (max-autotune), all in float16
with channels last, each in a process of its own that is stopped when it is late. docs/cuda.md says
what to carry to a machine without a network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.cuda_plans import AWARE, COUNTED, gain, make_plans
from hwprune.errors import ArtifactError, HwpruneError
from hwprune.nvcc import find_nvcc

MODEL = "resnet50"
BATCHES = (1, 32, 256)
TARGET, DTYPE = "nvidia-h200", "float16"
TORCH = ("eager", "cuda_graph", "torch_compile")
OURS = ("hwprune_dense", AWARE, COUNTED)
SYSTEMS = (*OURS, *TORCH)
LIMIT_S = {"torch_compile": 150}  # of one system at one batch; others the default
DEFAULT_LIMIT_S = 40
RUN_LIMIT_S = 570.0  # of all; what is left then has no row
PLANS = "plans.json"
WINDOW_S = 0.25  # of calls in a row, between two looks at the clock
SAMPLES = 8
Row = dict[str, Any]


def build(folder: Path, target: str, batches: Sequence[int]) -> None:
    """Write the artifacts of every batch, and what their plans keep."""
    import hwprune

    find_nvcc()  # before long work
    known: list[Row] = []
    for batch in batches:
        programs, row = make_plans(MODEL, batch, target, DTYPE)
        for system, program in programs.items():
            artifact = hwprune.compile(program, target=target, dtype=DTYPE, name=MODEL)
            artifact.save(folder / f"{system}_{batch}")
            print(f"{system} at batch {batch} is built", flush=True)
        known.append(row)
        document = {"model": MODEL, "target": target, "dtype": DTYPE, "batches": known}
        common.write(folder / PLANS, document)
        aware, counted = row[AWARE], row[COUNTED]
        print(
            f"batch {batch}: {aware['importance_kept']:.3f} of the importance kept at "
            f"{aware['latency_share']:.3f} of the latency, {counted['importance_kept']:.3f} at "
            f"{counted['latency_share']:.3f} by MACs; {row['latencies']}",
            flush=True,
        )


def read_plans(folder: Path) -> Row:
    """What `build` has written. Raises ArtifactError where it has not."""
    try:
        found: Row = json.loads((folder / PLANS).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{PLANS} cannot be read: {error}",
            where=str(folder),
            hint="python -m benchmarks.cuda build writes it, with the artifacts",
        ) from error
    return found


def find_gpu(target: str) -> Row:
    """The GPU that is here. Raises TargetError where there is none, or it is not the target's."""
    from hwprune.cuda_driver import Driver

    with Driver() as driver:
        from hwprune.measure_cuda import check_gpu
        from hwprune.target import load_target

        check_gpu(load_target(target), driver.facts)
        return asdict(driver.facts)


def sample_us(call: Callable[[], object], wait: Callable[[], object]) -> list[float]:
    """Microseconds of a call, many in a row, `wait` for the device only at the end of a window."""
    for _ in range(3):
        call()
    wait()
    start = time.perf_counter()
    call()
    wait()
    count = max(1, int(WINDOW_S / max(time.perf_counter() - start, 1e-6)))
    samples = []
    for _ in range(SAMPLES):
        start = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        samples.append((time.perf_counter() - start) / count * 1e6)
    return samples


def time_torch(system: str, batch: int) -> list[float]:
    """One of PyTorch's ways."""
    import torch

    from examples.models import build as model
    from examples.models import example_input

    layout = torch.channels_last
    network = model(MODEL).eval().half().cuda().to(memory_format=layout)
    images = example_input(MODEL, batch).half().cuda().to(memory_format=layout)
    torch.backends.cudnn.benchmark = True
    with torch.inference_mode():
        if system == "torch_compile":
            network = torch.compile(network, mode="max-autotune")
        if system != "cuda_graph":
            return sample_us(lambda: network(images), torch.cuda.synchronize)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                network(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            network(images)
        return sample_us(graph.replay, torch.cuda.synchronize)


def time_hwprune(folder: Path) -> list[float]:
    """An artifact, without torch."""
    from hwprune.deploy import load

    artifact = load(folder)
    artifact(*artifact.example_inputs())
    return sample_us(artifact.launch, artifact.wait)


def one(system: str, batch: int, folder: Path) -> Row:
    """A system at a batch, in this process."""
    if system in TORCH:
        samples = time_torch(system, batch)
    else:
        samples = time_hwprune(folder / f"{system}_{batch}")
    return {"system": system, "batch": batch, "source": "device", **common.quantiles(samples)}


def run(folder: Path, systems: Sequence[str], batches: Sequence[int]) -> list[Row]:
    """Every system at every batch, the longest last; one that fails or is late has the reason."""
    rows = []
    deadline = time.monotonic() + RUN_LIMIT_S
    pairs = [(system, batch) for batch in batches for system in systems]
    for system, batch in sorted(pairs, key=lambda pair: LIMIT_S.get(pair[0], 0)):
        command = [sys.executable, "-m", "benchmarks.cuda", "one", str(folder)]
        command += ["--system", system, "--batch", str(batch)]
        rows.append(in_process(command, system, batch, deadline - time.monotonic()))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def in_process(command: Sequence[str], system: str, batch: int, left_s: float) -> Row:
    """The row that a command prints last, or why there is none."""
    limit = min(LIMIT_S.get(system, DEFAULT_LIMIT_S), round(left_s, 1))
    row: Row = {"system": system, "batch": batch}
    if limit <= 0:
        return {**row, "failed": "no time is left"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {**row, "failed": f"not done after {limit} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()
        return {**row, "failed": said[-1] if said else f"exit status {done.returncode}"}
    found: Row = json.loads(lines[-1])
    return found


def ratios(rows: Sequence[Row], plans: Sequence[Row]) -> list[Row]:
    """For every batch: hwprune dense against the best of PyTorch's, pruned against dense.

    `importance_gain` is of the latency-aware over the MACs-aware plan at the same measured latency;
    `prediction_error` of the former's latency over the dense network's.
    """
    known = {row["batch"]: row for row in plans}
    found = []
    for batch in sorted({r["batch"] for r in rows}):
        us = {r["system"]: r["median_us"] for r in rows if r["batch"] == batch and "median_us" in r}
        torch_us = [us[s] for s in TORCH if s in us]
        dense, aware, counted = (us.get(system) for system in OURS)
        ratio = aware / dense if dense and aware else None
        plan = known.get(batch)
        row: Row = {
            "batch": batch,
            "dense_to_best_torch": dense / min(torch_us) if dense and torch_us else None,
            "latency_aware_to_dense": ratio,
            "macs_aware_to_dense": counted / dense if dense and counted else None,
        }
        if plan is not None and ratio is not None:
            row["prediction_error"] = plan[AWARE]["latency_share"] / ratio - 1.0
        if plan is not None and aware and counted:
            row["importance_gain"] = gain(plan, {AWARE: aware, COUNTED: counted})
        found.append(row)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Build, run, or time one system."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("what", choices=("build", "run", "one"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default=TARGET)
    parser.add_argument("--system", choices=SYSTEMS, action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    if args.what == "build":
        build(args.folder, args.target, args.batch or BATCHES)
    elif args.what == "one":
        print(json.dumps(one(args.system[0], args.batch[0], args.folder)))
    else:
        plans = read_plans(args.folder)
        gpu = find_gpu(plans["target"])
        rows = run(args.folder, args.system or SYSTEMS, args.batch or BATCHES)
        facts = {"ratios": ratios(rows, plans["batches"]), "gpu": gpu, "plans": plans}
        common.finish(args.out, rows, facts=facts)


if __name__ == "__main__":
    try:
        main()
    except HwpruneError as error:
        raise SystemExit(f"error: {error}") from error
