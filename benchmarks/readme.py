"""The README's tables, written from the committed results.

    python -m benchmarks.readme

Each table stands between `<!-- NAME -->` and `<!-- /NAME -->`, and comes from results/NAME.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from benchmarks.accuracy_summary import Summary, Value, summarise
from hwprune.atomic import write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Document = Mapping[str, Any]
PEERS = ("eager", "inductor", "onnxruntime", "openvino", "executorch")
STRONGEST = ("onnxruntime", "openvino", "executorch")
OWN = ("hwprune-dense", "hwprune-pruned")


def host_latency(document: Document) -> list[str]:
    """Median milliseconds by system; ours over the best peer, and pruned over dense."""
    found = {(r["model"], r["threads"], r["system"]): r for r in document["rows"]}
    settings = list(dict.fromkeys((r["model"], r["threads"]) for r in document["rows"]))
    lines = _head(
        "model", "threads", *PEERS, "ours, dense", "ours, 50 %", "dense / best", "50 % / dense"
    )
    for model, threads in settings:
        rows = [found.get((model, threads, system), {}) for system in (*PEERS, *OWN)]
        times = ["-" if not r.get("median_us") else f"{r['median_us'] / 1000:.1f}" for r in rows]
        ratios = (rows[-2].get("to_best_peer"), rows[-1].get("to_dense"))
        lines.append(
            _row(model, threads, *times, *("-" if x is None else f"{x:.2f}" for x in ratios))
        )
    return lines


def dense_networks(document: Document) -> list[str]:
    """Dense networks: milliseconds, ours over the best peer, and the mean of that."""
    found = {(r["model"], r["threads"], r["system"]): r for r in document["rows"]}
    columns = [f"{s}, {t}" for t in (1, 2) for s in (*STRONGEST, "ours")]
    lines = _head("model", *columns, "ours / best, 1", "ours / best, 2")
    ratios: dict[int, list[float]] = {1: [], 2: []}
    for model in dict.fromkeys(r["model"] for r in document["rows"]):
        cells: list[str] = []
        shares: list[str] = []
        for threads in (1, 2):
            rows = [found.get((model, threads, s), {}) for s in (*STRONGEST, "hwprune-dense")]
            times = [r.get("median_us") for r in rows]
            cells += ["-" if t is None else f"{t / 1000:.1f}" for t in times]
            ratio = rows[-1].get("to_best_peer")
            shares.append("-" if ratio is None else f"{ratio:.2f}")
            ratios[threads] += [] if ratio is None else [ratio]
        lines.append(_row(model, *cells, *shares))
    means = [f"**{geometric_mean(x):.2f}**" if x else "-" for x in ratios.values()]
    lines.append(_row("geometric mean", *[""] * len(columns), *means))
    return lines


def fashion_mnist(document: Document) -> list[str]:
    """Accuracies of the compiled artifacts on the 10,000 test images, and the measured speed-up."""
    lines = _head("network", "dense %", "pruned %", "reconstructed %", "fine-tuned %", "speed-up")
    for r in document["rows"]:
        accuracies = (r[f"{k}_accuracy"] for k in ("dense", "pruned", "reconstructed", "recovered"))
        lines.append(_row(r["model"], *(f"{a:.2f}" for a in accuracies), f"{r['speedup']:.2f}x"))
    return lines


def lite0_accuracy(document: Document) -> list[str]:
    """Per cent of held-out photos whose class stays the dense network's, by method and budget."""
    found = {(r["method"], r["budget"]): r["top1_agreement"] for r in document["rows"]}
    budgets = sorted({budget for _, budget in found}, reverse=True)
    lines = _head("method", *(f"{100 * b:.0f} % of MACs" for b in budgets))
    methods = dict.fromkeys(method for method, _ in found)
    for method in sorted(methods, key=lambda m: -found.get((m, budgets[-1]), 0.0)):
        shares = (found.get((method, b)) for b in budgets)
        lines.append(_row(method, *("-" if x is None else f"{100 * x:.0f}" for x in shares)))
    return lines


def allocation(document: Document) -> list[str]:
    """Importance kept (per cent of the dense network's) at the same exactly priced latency."""
    methods = list(dict.fromkeys(r["method"] for r in document["rows"] if "importance_share" in r))
    found = {(r["model"], r.get("budget"), r["method"]): r for r in document["rows"]}
    lines = _head("model", "budget", *methods, "gap", "seconds")
    for model, budget in dict.fromkeys((m, b) for m, b, _ in found if b is not None):
        rows = [found[model, budget, method] for method in methods]
        shares = (f"{100 * r['importance_share']:.2f}" for r in rows)
        ours = rows[0]
        gap, seconds = f"{100 * ours['gap']:.2f} %", f"{ours['seconds']:.1f}"
        lines.append(_row(model, f"{100 * budget:.0f} %", *shares, gap, seconds))
    return lines


def analysis_time(document: Document) -> list[str]:
    """Seconds from a captured model to a pruned one, one thread, by system."""
    rows = document["rows"]
    stages = list(dict.fromkeys((r["system"], r["stage"]) for r in rows))
    shown = [s for s in stages if s[0] == "hwprune" or s[1] == "total"]
    found = {(r["model"], r["system"], r["stage"]): r for r in rows}
    lines = _head("model", *(f"{system}: {stage}" for system, stage in shown))
    for model in dict.fromkeys(r["model"] for r in rows):
        cells = [found.get((model, *stage), {}) for stage in shown]
        times = [
            c.get("status", "-") if c.get("seconds") is None else f"{c['seconds']:.2f}"
            for c in cells
        ]
        lines.append(_row(model, *times))
    return lines


def accuracy(document: Document) -> list[str]:
    """Per cent right without labels and, in brackets, after ten epochs, by system.

    Means, and deviations where there are several seeds.
    """
    found = summarise(document["rows"])
    systems = list(dict.fromkeys(system for *_, system in found))
    lines = _head("network", "speed-up", "dense", *systems)
    for model, speedup in dict.fromkeys(key[:2] for key in found):
        here = {s: found[model, speedup, s] for s in systems if (model, speedup, s) in found}
        dense = next((v for s in here.values() if (v := s.values["acc_dense"])), None)
        cells = [_reached(here.get(system)) for system in systems]
        lines.append(_row(model, f"{speedup:g}x", _spread(dense), *cells))
    return lines


def _reached(summary: Summary | None) -> str:
    if summary is None:
        return ""
    if not summary.seeds:
        return "out of reach"
    recovered, tuned = summary.values["acc_recovered"], summary.values["acc_10"]
    after = "" if tuned is None else f"({_spread(tuned)})"
    return f"{_spread(recovered)} {after}".rstrip()


def _spread(value: Value | None) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.2f}" + f" ± {value.deviation:.2f}" * (value.deviation > 0)


def lite0_latency(document: Document) -> list[str]:
    """Per cent of held-out photos whose class stays, and the measured share of the latency."""
    found = {(r["system"], r["budget"]): r for r in document["rows"] if "ratio" in r}
    budgets = sorted({budget for _, budget in found}, reverse=True)
    lines = _head("system", *(f"{100 * b:.0f} % of the latency" for b in budgets))
    for system in dict.fromkeys(system for system, _ in found):
        rows = [found.get((system, b)) for b in budgets]
        cells = [
            "-" if r is None else f"{100 * r['top1_agreement']:.0f} (at {100 * r['ratio']:.0f} %)"
            for r in rows
        ]
        lines.append(_row(system, *cells))
    return lines


def mcu(document: Document) -> list[str]:
    """On a Cortex-M4: instructions counted by the emulator, modelled and published milliseconds."""
    lines = _head(
        "network", "variant", "instructions, M", "a MAC", "SRAM, kB", "flash, kB", "ms, model",
        "ms, microTVM + CMSIS-NN", "ms, best published",
    )  # fmt: skip
    for r in (row for row in document["rows"] if row["core"] == "cortex-m4"):
        published = r["published_ms"] if r["variant"] == "dense" else {}
        best = f"{min(published.values()):.4g}" if published else "-"
        ours = (
            f"{r['instructions'] / 1e6:.2f}", f"{r['instructions_per_mac']:.2f}",
            f"{r['arena_bytes'] / 1e3:.1f}", f"{r['flash_bytes'] / 1e3:.1f}",
            f"{r['latency_ms']:.1f}",
        )  # fmt: skip
        peer = published.get("microTVM + CMSIS-NN")
        lines.append(
            _row(r["model"], r["variant"], *ours, "-" if peer is None else f"{peer:.4g}", best)
        )
    return lines


TABLES: dict[str, Callable[[Document], list[str]]] = {
    "host_latency": host_latency,
    "dense_networks": dense_networks,
    "fashion_mnist": fashion_mnist,
    "lite0_accuracy": lite0_accuracy,
    "lite0_latency": lite0_latency,
    "accuracy": accuracy,
    "allocation": allocation,
    "analysis_time": analysis_time,
    "mcu": mcu,
}


def render(text: str, results: Path = RESULTS) -> str:
    """The text with every marked table replaced by what its results say."""
    for name, table in TABLES.items():
        file = results / f"{name}.json"
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if file.exists() and block.search(text):
            lines = "\n".join(table(json.loads(file.read_text())))
            text = block.sub(lambda m, lines=lines: f"{m[1]}{lines}\n{m[2]}", text)
    return text


def _head(*names: str) -> list[str]:
    rule: Sequence[str] = [":--", *("--:" for _ in names[1:])]
    return [_row(*names), _row(*rule)]


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    readme = ROOT / "README.md"
    write_text(readme, render(readme.read_text()))


if __name__ == "__main__":
    main()
