"""Which convolutions of a network lose to which peer, and by how much.

    python -m benchmarks.kernel_losses [--quick] [--out FILE] [--model NAME] [--threads N]

One process runs hwprune, ONNX Runtime and OpenVINO in turn, a whole network each; all three tell
how long each of their kernels took. The k-th convolution of the captured graph is the k-th of the
ONNX graph, whatever a runtime calls it; one of our kernels that computes two of them is compared
with the sum of both. What is no convolution is one row: a peer's copies between layouts are there.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common, systems
from benchmarks.child import call
from benchmarks.roofline import kind, shape

MODELS = ("resnet50", "mobilenet_v2")
QUICK_MODEL = "mobilenet_v2"
ROUNDS = 30
WORST = 12
TIMEOUT_S = 900.0
OURS, PEERS = "hwprune", ("onnxruntime", "openvino")
OTHER = -1  # the number of what is no convolution
Row = dict[str, Any]
Times = dict[int, float]  # microseconds of one run by convolution


def profile(model: str, threads: int, rounds: int) -> list[Row]:
    """A row for every kernel that computes a convolution; to be called in an own process."""
    with tempfile.TemporaryDirectory() as directory:
        systems.prepare_reference(model, threads, directory)
        systems.prepare_onnx(model, threads, directory)
        kernels, ours = _hwprune(model, threads)
        started = {OURS: ours} | {
            name: start(Path(directory), threads)
            for name, start in (("onnxruntime", _onnxruntime), ("openvino", _openvino))
        }
        found: dict[str, list[Times]] = {name: [] for name in started}
        for number in range(rounds):
            for name in (started, reversed(started))[number % 2]:
                found[name] += started[name]()
    medians = {name: median(times) for name, times in found.items()}
    return [{"model": model, "threads": threads} | row for row in compare(kernels, medians)]


def median(runs: Sequence[Times]) -> Times:
    """Of every convolution; the first run of a round is no better or worse than the others."""
    return {number: float(np.median([run[number] for run in runs])) for number in runs[0]}


def compare(kernels: Sequence[Row], medians: Mapping[str, Times]) -> list[Row]:
    """Rows of kernels, `convolutions` being what each computes, with every system's time."""
    rows = []
    for kernel in kernels:
        numbers = kernel["convolutions"]
        us = {n: sum(medians[n][c] for c in numbers) for n in PEERS}
        us[OURS] = medians[OURS][numbers[0]]  # one launch
        best = min(PEERS, key=lambda name: us[name])
        times = {f"{name}_us": round(value, 2) for name, value in us.items()}
        lost = us[OURS] - us[best]
        rows.append(kernel | times | {"best_peer": best, "lost_us": round(lost, 2)})
    return rows


def _hwprune(model: str, threads: int) -> tuple[list[Row], Callable[[], list[Times]]]:
    """Our kernels, and a function that times each of them in two runs of the network."""
    import torch

    from examples.models import build, example_input
    from hwprune.capture import capture, specialize
    from hwprune.lower import lower
    from hwprune.target import load_target

    torch.set_num_threads(threads)
    x = example_input(model)
    program = specialize(capture(build(model), (x,), name=model))
    lowered = lower(program, load_target("host"), threads)
    names = [n.name for n in program.module.graph.nodes if "aten.conv" in str(n.target)]
    of_call = [[names.index(n) for n in c.nodes if n in names] for c in lowered.calls]
    rows = [
        {
            "kernel": c.name,
            "kind": kind(c.workload),
            "shape": shape(c.workload),
            "rule": lowered.rules[c.name][0],
            "convolutions": numbers,
        }
        for c, numbers in zip(lowered.calls, of_call, strict=True)
        if numbers
    ]
    rest: Row = {"kernel": "all others", "kind": "other", "shape": "", "rule": ""}

    def run() -> list[Times]:
        return [
            _summed((n[0] if n else OTHER, us) for n, us in zip(of_call, launches, strict=True))
            for launches in lowered.launches_us([x.numpy()], 2).tolist()
        ]

    return [*rows, rest | {"convolutions": [OTHER]}], run


def _onnxruntime(directory: Path, threads: int) -> Callable[[], list[Times]]:
    """Every call is a session of its own: a profile is written when it ends."""
    import onnx

    graph = onnx.load(str(directory / "model.onnx")).graph
    image = np.load(directory / systems.INPUT)

    def run() -> list[Times]:
        session = systems.onnxruntime_session(threads, directory, str(directory / "profile"))
        for _ in range(3):
            session.run(None, {session.get_inputs()[0].name: image})
        return runs_of(json.loads(Path(session.end_profiling()).read_text()), graph)[1:]

    return run


def runs_of(events: Sequence[Row], graph: Any) -> list[Times]:
    """The runs in a profile of ONNX Runtime, whose kernels are named after values or nodes."""
    kernels = [e for e in events if e["name"].endswith("_kernel_time") and e["cat"] == "Node"]
    starts = [e["name"] for e in kernels].count(kernels[0]["name"])
    length = len(kernels) // starts
    runs = [kernels[i * length : (i + 1) * length] for i in range(starts)]
    numbers = _numbers([_plain(e["name"]) for e in runs[0] if _is_conv(e)], graph)
    found = []
    for run in runs:
        order = iter(numbers)
        found.append(_summed((next(order) if _is_conv(e) else OTHER, e["dur"]) for e in run))
    return found


def _is_conv(event: Row) -> bool:
    return str(event["args"]["op_name"]) in ("Conv", "FusedConv", "NhwcFusedConv")


def _plain(name: str) -> str:
    return name.removesuffix("_kernel_time").removesuffix("_nchwc")


def _numbers(names: Sequence[str], graph: Any) -> list[int]:
    """Which convolution of the ONNX graph each name is: of its node, or of a value made from it.

    A sum is made from two: it belongs to the one that no other name stands for.
    """
    made_by = {value: node for node in graph.node for value in node.output}
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    sources = [
        {name} if name in convolutions else _sources(made_by.get(name), made_by) for name in names
    ]
    taken: dict[int, str] = {}
    for at in sorted(range(len(names)), key=lambda i: len(sources[i])):
        (name,) = sources[at] - set(taken.values())
        taken[at] = name
    return [convolutions.index(taken[at]) for at in range(len(names))]


def _sources(node: Any, made_by: Mapping[str, Any]) -> set[str]:
    """The convolutions that a node's value comes from with no other convolution between."""
    if node is None:
        return set()
    if node.op_type == "Conv":
        return {node.name}
    return set().union(*(_sources(made_by.get(value), made_by) for value in node.input))


def _openvino(directory: Path, threads: int) -> Callable[[], list[Times]]:
    import onnx

    graph = onnx.load(str(directory / "model.onnx")).graph
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    request = systems.openvino_request(threads, directory, PERF_COUNT=True)

    def run() -> list[Times]:
        request.infer()
        found = []
        for _ in range(2):
            request.infer()
            found.append(_summed(_executed(request.profiling_info, convolutions)))
        return found

    return run


def _executed(kernels: Any, convolutions: Sequence[str]) -> Iterator[tuple[int, float]]:
    """(convolution, microseconds) of what an inference of OpenVINO ran."""
    for kernel in kernels:
        if kernel.status == kernel.status.EXECUTED:
            name = kernel.node_name.split("/")[0]
            is_conv = "Convolution" in kernel.node_type
            number = convolutions.index(name) if is_conv else OTHER
            yield number, kernel.real_time.total_seconds() * 1e6


def _summed(times: Any) -> Times:
    """Added up by convolution."""
    found: Times = {OTHER: 0.0}
    for number, us in times:
        found[number] = found.get(number, 0.0) + us
    return found


def show(rows: Sequence[Row]) -> None:
    """Print times by kind, then the kernels that lose most to the better peer."""
    title = f"{rows[0]['model']}, {rows[0]['threads']} threads, µs"
    heads = (OURS, *PEERS, "lost to the better")
    columns = [*(f"{name}_us" for name in (OURS, *PEERS)), "lost_us"]
    kinds = [
        [k, [r for r in rows if r["kind"] == k]] for k in dict.fromkeys(r["kind"] for r in rows)
    ]
    common.table(
        f"{title}, by kind",
        ("kind", "kernels", *heads),
        [[k, str(len(m)), *(f"{sum(r[c] for r in m):.0f}" for c in columns)] for k, m in kinds],
    )
    losing = [r for r in sorted(rows, key=lambda r: -r["lost_us"]) if r["lost_us"] > 0]
    common.table(
        f"{title}, that lose most",
        ("kernel", "kind", "shape", "rule", *heads[:-1], "better peer", "lost"),
        [
            [*(r[c] for c in ("kernel", "kind", "shape", "rule")),
             *(f"{r[c]:.0f}" for c in columns[:-1]), r["best_peer"], f"{r['lost_us']:.0f}"]
            for r in losing[:WORST]
        ],
        text=4,
    )  # fmt: skip


def main() -> None:
    parser = common.parser(__doc__, f"{QUICK_MODEL} only, one thread, few rounds")
    parser.add_argument("--model", action="append", help="only this network (repeatable)")
    parser.add_argument("--threads", type=int, action="append", help="1 if not given")
    options = parser.parse_args()
    rows: list[Row] = []
    failures: list[Row] = []
    for threads in options.threads or (1,):
        for model in options.model or ((QUICK_MODEL,) if options.quick else MODELS):
            rounds = 5 if options.quick else ROUNDS
            arguments = {"model": model, "threads": threads, "rounds": rounds}
            with common.console.status(f"{model}, {threads} threads"):
                outcome = call(
                    "benchmarks.kernel_losses:profile",
                    arguments, threads=threads, timeout_s=TIMEOUT_S,
                )  # fmt: skip
            if outcome.reason is not None:
                failures.append({**arguments, "reason": outcome.reason})
                common.console.print(f"{model}: {outcome.reason}", style="yellow", markup=False)
                continue
            show(outcome.value)
            rows += outcome.value
    packages = ("torchvision", "onnxruntime", "openvino")
    common.finish(options.out, rows, packages, {"failures": failures})


if __name__ == "__main__":
    main()
