"""ResNet-50 in float16 on a GPU: PyTorch's three ways, hwprune dense and pruned.

    python -m benchmarks.cuda build FOLDER            # anywhere with nvcc; no GPU needed
    python -m benchmarks.cuda run FOLDER [--out FILE]  # on the GPU, under ten minutes

`build` writes an artifact for every batch, dense and at half the multiply-accumulates. `run` times
them beside PyTorch eager, a CUDA graph and torch.compile (max-autotune), all in float16 with
channels last, each in a process of its own that is stopped when it is late. docs/cuda.md says what
to carry to a machine without a network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common

MODEL = "resnet50"
BATCHES = (1, 32, 256)
PRUNED_MACS = "50%"
TARGET = "nvidia-h200"
TORCH = ("eager", "cuda_graph", "torch_compile")
SYSTEMS = (*TORCH, "hwprune_dense", "hwprune_pruned")
LIMIT_S = {"torch_compile": 150}  # of one system at one batch; others the default
DEFAULT_LIMIT_S = 40
WINDOW_S = 0.25  # of calls in a row, between two looks at the clock
SAMPLES = 8
Row = dict[str, Any]


def build(folder: Path, target: str) -> None:
    """Write the artifacts, dense and pruned, of every batch."""
    import hwprune
    from examples.models import build as model
    from examples.models import example_input

    dense = model(MODEL).eval()
    pruned = hwprune.prune(dense, (example_input(MODEL),), macs=PRUNED_MACS, name=MODEL).model
    for batch in BATCHES:
        for system, network in (("hwprune_dense", dense), ("hwprune_pruned", pruned)):
            artifact = hwprune.compile(
                network, (example_input(MODEL, batch),), target=target, dtype="float16", name=MODEL
            )
            artifact.save(folder / f"{system}_{batch}")
            print(f"{system} at batch {batch} is built", flush=True)


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
    """Every system at every batch, in turn; one that fails or is late has the reason."""
    rows = []
    for batch in batches:
        for system in systems:
            command = [sys.executable, "-m", "benchmarks.cuda", "one", str(folder)]
            command += ["--system", system, "--batch", str(batch)]
            rows.append(in_process(command, system, batch))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def in_process(command: Sequence[str], system: str, batch: int) -> Row:
    """The row that a command prints last, or why there is none."""
    limit = LIMIT_S.get(system, DEFAULT_LIMIT_S)
    row: Row = {"system": system, "batch": batch}
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


def ratios(rows: Sequence[Row]) -> list[Row]:
    """For every batch: hwprune dense against the best of PyTorch's, pruned against dense."""
    found = []
    for batch in sorted({r["batch"] for r in rows}):
        us = {r["system"]: r["median_us"] for r in rows if r["batch"] == batch and "median_us" in r}
        torch_us = [us[s] for s in TORCH if s in us]
        dense, pruned = us.get("hwprune_dense"), us.get("hwprune_pruned")
        found.append(
            {
                "batch": batch,
                "dense_to_best_torch": dense / min(torch_us) if dense and torch_us else None,
                "pruned_to_dense": pruned / dense if dense and pruned else None,
            }
        )
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
        build(args.folder, args.target)
    elif args.what == "one":
        print(json.dumps(one(args.system[0], args.batch[0], args.folder)))
    else:
        rows = run(args.folder, args.system or SYSTEMS, args.batch or BATCHES)
        common.finish(args.out, rows, facts={"ratios": ratios(rows), "model": MODEL})


if __name__ == "__main__":
    main()
