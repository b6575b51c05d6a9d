"""Latency on this machine, batch 1: hwprune, dense and pruned to half, against its peers.

    python -m benchmarks.host_latency [--quick] [--out FILE] [--model NAME] [--threads N]

Every system runs in a process of its own, rounds interleaved (see `benchmarks.workers`). A system
that is missing or fails stands in the result with its reason.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import common
from benchmarks.child import call
from benchmarks.systems import CONTESTANTS, PREPARE, Contestant
from benchmarks.workers import System, Timing, time_interleaved

MODELS = (
    "efficientnet_lite0",
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
    "densenet121",
    "vgg16",
    "convnext_tiny",
    "vit_small",
    "minilm",
)
QUICK_MODEL = "mobilenet_v2"
QUICK_SYSTEMS = ("eager", "onnxruntime", "openvino", "hwprune-dense")
SYSTEMS = "benchmarks.systems"
PREPARE_TIMEOUT_S = 1800.0
Row = dict[str, Any]


def measure(
    model: str,
    threads: int,
    contestants: Sequence[Contestant],
    rounds: int,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Rows of all contestants on one model."""
    with tempfile.TemporaryDirectory(prefix="host-latency-") as directory:
        arguments = {"model": model, "threads": threads, "directory": directory}
        facts, reasons = _prepare(contestants, arguments, threads, progress)
        systems = [
            System(c.name, f"{SYSTEMS}:load_{c.name.replace('-', '_')}", arguments)
            for c in contestants
            if c.name not in reasons
        ]
        timings = time_interleaved(systems, threads=threads, rounds=rounds, progress=progress)
    for name, reason in reasons.items():
        timings[name] = Timing(name, reason=reason)
    return [_row(model, threads, timings[c.name], facts.get(c.name, {})) for c in contestants]


def _prepare(
    contestants: Sequence[Contestant],
    arguments: dict[str, Any],
    threads: int,
    progress: Callable[[str], None],
) -> tuple[dict[str, Row], dict[str, str]]:
    """Facts about what was exported and compiled, and why the rest was not, by system."""
    facts: dict[str, Row] = {}
    reasons: dict[str, str] = {}
    done: dict[str, tuple[Row, str | None]] = {}
    for name in ("reference", *(c.name for c in contestants)):
        function = "prepare_reference" if name == "reference" else PREPARE.get(name)
        if function is None:
            continue
        if function not in done:
            progress(f"prepare {name}")
            outcome = call(
                f"{SYSTEMS}:{function}", arguments, threads=threads, timeout_s=PREPARE_TIMEOUT_S
            )
            found = dict(outcome.value) if outcome.values else {}
            done[function] = (found | {"peak_rss_mib": outcome.peak_rss_mib}, outcome.reason)
        facts[name], reason = done[function]
        if reason is not None:
            reasons[name] = reason
    if "reference" in reasons:
        return {}, {c.name: f"no reference: {reasons['reference']}" for c in contestants}
    return facts, reasons


def _row(model: str, threads: int, timing: Timing, facts: Row) -> Row:
    row: Row = {"model": model, "threads": threads, "system": timing.name}
    if timing.reason is not None:
        return row | {"median_us": None, "p10_us": None, "p90_us": None, "reason": timing.reason}
    return row | common.quantiles(timing.samples_us) | {"samples": len(timing.samples_us)} | facts


def add_ratios(rows: Sequence[Row]) -> None:
    """Add, in place, `to_best_peer` (median over the best peer's) and `to_dense` (pruned)."""
    peers = {c.name for c in CONTESTANTS if c.is_peer}
    settings = {(row["model"], row["threads"]) for row in rows}
    for setting in settings:
        group = [
            r for r in rows if (r["model"], r["threads"]) == setting and r["median_us"] is not None
        ]
        best = min((r["median_us"] for r in group if r["system"] in peers), default=None)
        dense = next((r["median_us"] for r in group if r["system"] == "hwprune-dense"), None)
        for row in group:
            if best is not None:
                row["to_best_peer"] = round(row["median_us"] / best, 3)
            if dense is not None and row["system"] == "hwprune-pruned":
                row["to_dense"] = round(row["median_us"] / dense, 3)


def show(rows: Sequence[Row]) -> None:
    """Print medians, spreads and ratios; then what is missing, and why."""
    common.table(
        "Host latency, batch 1, float32",
        (
            "model",
            "system",
            "threads",
            "median ms",
            "p10",
            "p90",
            "min",
            "to best peer",
            "to own dense",
        ),
        [_cells(row) for row in rows],
        text=2,
    )
    for row in rows:
        if row.get("reason"):
            where = f"{row['system']} on {row['model']}, {row['threads']} threads"
            common.console.print(f"{where}: {row['reason']}", style="yellow", markup=False)


def _cells(row: Row) -> list[str]:
    times = [row["median_us"], row["p10_us"], row["p90_us"], row.get("min_us")]
    ratios = [row.get("to_best_peer"), row.get("to_dense")]
    return [
        row["model"],
        row["system"],
        str(row["threads"]),
        *("-" if t is None else f"{t / 1000:.2f}" for t in times),
        *("" if r is None else f"{r:.2f}" for r in ratios),
    ]


def main() -> None:
    parser = common.parser(__doc__, f"{QUICK_MODEL} only, fewer systems, one thread, few rounds")
    parser.add_argument("--model", action="append", help="only this network (repeatable)")
    parser.add_argument("--system", action="append", help="only this system (repeatable)")
    parser.add_argument("--threads", type=int, action="append", help="1 and 2 if not given")
    parser.add_argument("--keep", action="store_true", help="go on from the rows in FILE")
    parser.add_argument("--rounds", type=int, help="25, or 5 with --quick")
    options = parser.parse_args()
    models = options.model or ((QUICK_MODEL,) if options.quick else MODELS)
    wanted = options.system or (QUICK_SYSTEMS if options.quick else None)
    contestants = [c for c in CONTESTANTS if wanted is None or c.name in wanted]
    rounds = options.rounds or (5 if options.quick else 25)
    cores = common.machine()["cores"]
    packages = sorted({p for c in contestants for p in c.packages})
    rows: list[Row] = common.rows_of(options.out) if options.keep else []
    for model in models:
        for threads in options.threads or ((1,) if options.quick else (1, 2)):
            if threads > cores:
                common.console.print(f"{threads} threads: only {cores} cores here", style="yellow")
                continue
            if any((r["model"], r["threads"]) == (model, threads) for r in rows):
                continue
            with common.console.status(f"{model}, {threads} threads") as status:

                def shown(step: str, title: str = f"{model}, {threads} threads") -> None:
                    status.update(f"{title}: {step}")

                rows += measure(model, threads, contestants, rounds, shown)
            add_ratios(rows)
            if options.out is not None:
                common.write(options.out, common.envelope(rows, packages))
    show(rows)
    common.finish(options.out, rows, packages)


if __name__ == "__main__":
    main()
