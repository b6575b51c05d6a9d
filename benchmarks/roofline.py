"""How far every kernel is from what this machine can do: multiply-adds and bytes, both measured.

    python -m benchmarks.roofline [--quick] [--out FILE] [--model NAME] [--threads N]

Every network runs in a process of its own, which first measures the machine's peaks (see
`benchmarks.peaks`), then times every kernel in its place in the network, with a burst of
multiply-adds at the peak before each. Operations are those of the direct algorithm (2 a
multiply-add), against the peak beside the same launch: cores that are shared are at times half as
fast. Bytes are inputs, parameters and output, each once, against the bandwidth of the nearest level
that holds all of them. A kernel's roof is the lower of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.child import call
from hwprune.lower.spec import PACKED

MODELS = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_lite0")
QUICK_MODEL = "mobilenet_v2"
REPEATS = 30
WORST = 10
TIMEOUT_S = 900.0
HEADLINES = ("3x3", "1x1")  # dense
Row = dict[str, Any]


def profile(model: str, threads: int, repeats: int) -> dict[str, Any]:
    """The peaks and a row for every kernel; to be called in a process of its own."""
    import torch

    from benchmarks.peaks import Burst, measure_peaks
    from examples.models import build, example_input
    from hwprune.capture import capture, specialize
    from hwprune.lower import lower
    from hwprune.target import load_target

    torch.set_num_threads(threads)
    target, x = load_target("host"), example_input(model)
    peaks = measure_peaks(target, threads)
    lowered = lower(specialize(capture(build(model), (x,), name=model)), target, threads)
    burst, seconds = Burst(target, threads), list[float]()
    inputs, beside = [x.numpy()], lambda: seconds.append(min(burst(), burst()))
    us = lowered.launches_us(inputs, repeats, before=beside)
    possible = burst.operations / np.asarray(seconds[-us.size :]).reshape(us.shape)
    times, totals = np.median(us, axis=0), np.median(us * possible, axis=0)
    rows = [
        _row(call, lowered.rules[call.name][0], *measured, peaks, target.lanes)
        for call, *measured in zip(lowered.calls, times.tolist(), totals.tolist(), strict=True)
    ]
    shared = {"model": model, "threads": threads}
    rows = [shared | row | {"share": round(row["us"] / times.sum(), 5)} for row in rows]
    facts = shared | peaks.to_json() | {"median_flops_per_s": float(np.median(possible))}
    return {"peaks": facts, "rows": rows}


def _row(launch: Any, rule: str, us: float, possible: float, peaks: Any, lanes: int) -> Row:
    """What a kernel reached, and what the machine could: `possible` / 1e6 at its peak."""
    from math import prod

    from hwprune.macs import macs

    workload = launch.workload
    specs = (*workload.inputs, *workload.params, workload.output)
    size = sum(4 * prod(spec.physical(lanes)) for spec in specs)
    level, operations = peaks.level(size), 2 * macs(workload)
    of_flops, of_bytes = operations / possible * 1e6, size / us * 1e6 / peaks.bytes_per_s[level]
    return {
        "kernel": launch.name,
        "rule": rule,
        "kind": kind(workload),
        "shape": shape(workload),
        "us": round(us, 2),
        "gflops": round(operations / us / 1e3, 2),
        "gbytes_per_s": round(size / us / 1e3, 2),
        "level": level,
        "of_flops": round(of_flops, 4),
        "of_bytes": round(of_bytes, 4),
        "of_roof": round(max(of_flops, of_bytes), 4),
    }


def kind(workload: Any) -> str:
    """The kernel's size of a dense convolution ("first" of an image), or what else it is."""
    if workload.op != "conv2d":
        return str(workload.op)
    _, channels, height, width = workload.params[0].shape
    inputs = workload.inputs[0].shape[1]
    if channels == inputs:
        size = f"{height}x{width}"
        return size if workload.inputs[0].layout == PACKED else f"first {size}"
    return "depthwise" if channels == 1 and workload.params[0].shape[0] == inputs else "grouped"


def shape(workload: Any) -> str:
    """Input and output of a kernel, for people."""
    ends = (workload.inputs[0].shape, workload.output.shape)
    return " to ".join("x".join(map(str, sizes[1:])) for sizes in ends)


def weighted(rows: Sequence[Row], value: str) -> float:
    """The mean of a value over kernels, weighted by their time; 0 without kernels."""
    total = sum(row["us"] for row in rows)
    return sum(row["us"] * row[value] for row in rows) / total if rows else 0.0


def groups(rows: Sequence[Row]) -> list[Row]:
    """Kernels by rule and kind, most time first."""
    total, found = sum(row["us"] for row in rows), []
    for rule, size in dict.fromkeys((row["rule"], row["kind"]) for row in rows):
        mine = [row for row in rows if (row["rule"], row["kind"]) == (rule, size)]
        means = {key: weighted(mine, key) for key in ("gflops", "gbytes_per_s", *_SHARES)}
        us = sum(row["us"] for row in mine)
        group = {"rule": rule, "kind": size, "kernels": len(mine), "us": us, "share": us / total}
        found.append(group | means)
    return sorted(found, key=lambda group: -group["us"])


_SHARES = ("of_flops", "of_bytes", "of_roof")


def headlines(rows: Sequence[Row]) -> dict[str, float | None]:
    """The mean share of the multiply-add peak of dense convolutions, by the size of the kernel."""
    found: dict[str, float | None] = {}
    for size in HEADLINES:
        mine = [row for row in rows if row["kind"] == size]
        found[size] = round(weighted(mine, "of_flops"), 4) if mine else None
    return found


def worst(rows: Sequence[Row]) -> list[Row]:
    """The kernels that lose most time to the distance from their roof."""
    return sorted(rows, key=lambda row: row["us"] * (row["of_roof"] - 1))[:WORST]


def show(found: dict[str, Any]) -> None:
    """Print the peaks, the kernels by rule, the headlines and the worst kernels."""
    peaks, rows = found["peaks"], found["rows"]
    title = f"{peaks['model']}, {peaks['threads']} threads"
    rates = ", ".join(f"{k} {v / 1e9:.0f} GB/s" for k, v in peaks["bytes_per_s"].items())
    text = f"{title}: measured peaks {peaks['flops_per_s'] / 1e9:.0f} GFLOP/s "
    text += f"(median beside the kernels {peaks['median_flops_per_s'] / 1e9:.0f}), {rates}"
    common.console.print(text, markup=False)
    heads = ("us", "share", "GFLOP/s", "% of peak", "GB/s", "% of level", "% of roof")
    named = ("rule", "kind", "kernels")
    common.table(
        f"{title}, by rule",
        (*named, *heads),
        [[g["rule"], g["kind"], str(g["kernels"]), *_numbers(g)] for g in groups(rows)],
        text=2,
    )
    common.table(
        f"{title}, most time lost",
        ("kernel", "kind", "shape", *heads),
        [[r["kernel"], r["kind"], r["shape"], *_numbers(r)] for r in worst(rows)],
        text=3,
    )
    for size, share in headlines(rows).items():
        text = "none" if share is None else f"{share:.0%} of the measured peak"
        common.console.print(f"{title}: dense {size} convolutions: {text}", markup=False)


def _numbers(row: Row) -> list[str]:
    return [
        f"{row['us']:.0f}",
        f"{row['share']:.0%}",
        f"{row['gflops']:.0f}",
        f"{row['of_flops']:.0%}",
        f"{row['gbytes_per_s']:.0f}",
        f"{row['of_bytes']:.0%}",
        f"{row['of_roof']:.0%}",
    ]


def main() -> None:
    parser = common.parser(__doc__, f"{QUICK_MODEL} only, one thread, few repeats")
    parser.add_argument("--model", action="append", help="only this network (repeatable)")
    parser.add_argument("--threads", type=int, action="append", help="1 if not given")
    options = parser.parse_args()
    models = options.model or ((QUICK_MODEL,) if options.quick else MODELS)
    rows: list[Row] = []
    facts: dict[str, list[Row]] = {"peaks": [], "headlines": [], "failures": []}
    for threads in options.threads or (1,):
        for model in models:
            repeats = 10 if options.quick else REPEATS
            arguments = {"model": model, "threads": threads, "repeats": repeats}
            with common.console.status(f"{model}, {threads} threads"):
                outcome = call(
                    "benchmarks.roofline:profile", arguments, threads=threads, timeout_s=TIMEOUT_S
                )
            if outcome.reason is not None:
                facts["failures"].append({**arguments, "reason": outcome.reason})
                common.console.print(f"{model}: {outcome.reason}", style="yellow", markup=False)
                continue
            show(outcome.value)
            rows += outcome.value["rows"]
            facts["peaks"].append(outcome.value["peaks"])
            share = headlines(outcome.value["rows"])
            facts["headlines"].append({"model": model, "threads": threads, **share})
    common.finish(options.out, rows, ("torchvision",), facts)


if __name__ == "__main__":
    main()
