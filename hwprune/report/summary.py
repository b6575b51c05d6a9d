"""A report in lines of text: what the terminal and the page both show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Report = Mapping[str, Any]

MEASURED = "measured"
HOW = {"device": MEASURED, "emulator": "counted in an emulator", "model": "predicted by a model"}

MS = 1e-3  # of a microsecond
SHORT_MS = 0.1  # below, two decimals say nothing
_SIZES = (
    ("latency_us", "latency, {} (ms)", MS, "{:.2f}"),
    ("predicted_us", "latency, predicted (ms)", MS, "{:.2f}"),
    ("macs", "multiply-accumulates (M)", 1e-6, "{:.1f}"),
    ("params", "parameters (M)", 1e-6, "{:.3f}"),
    ("weight_bytes", "weights (MB)", 1e-6, "{:.2f}"),
    ("activation_bytes", "activations (MB)", 1e-6, "{:.2f}"),
    ("energy_uj", "energy, model (uJ)", 1.0, "{:.0f}"),
)


def heading(report: Report) -> str:
    """One line: which model, where, on how many threads; that a latency is not measured.

    Of a GPU the batch and the type take the threads' place.
    """
    threads = report["threads"]
    ran = f"{threads} thread{'s' * (threads != 1)}"
    if "batch" in report:
        ran = f"batch {report['batch']}, {report['dtype']}"
    line = f"{report['model']} on {report['target']}, {ran}"
    return line if how(report) == MEASURED else f"{line}; latency {how(report)}"


def how(report: Report) -> str:
    """Where the report's latencies come from, in words."""
    return HOW[report["pruned"].get("latency_source", "device")]


def rows(report: Report) -> list[tuple[str, str, str, str]]:
    """(what, dense, pruned, ratio) lines that sum a report up."""
    dense, pruned = report["dense"], report["pruned"]
    lines = []
    for key, label, scale, form in _SIZES:
        if key not in dense or key not in pruned:
            continue
        before, after = dense[key] * scale, pruned[key] * scale
        if scale == MS and min(before, after) < SHORT_MS:
            form = "{:.4f}"
        lines.append(
            (
                label.format(how(report)),
                form.format(before),
                form.format(after),
                f"{ratio(report, key):.3f}",
            )
        )
    return lines


def ratio(report: Report, key: str) -> float:
    """Pruned over dense; for the latency the median of the interleaved rounds."""
    if key == "latency_us" and "ratio" in report:
        return float(report["ratio"])
    dense = float(report["dense"][key])
    return float(report["pruned"][key]) / dense if dense else 1.0


def facts(report: Report) -> list[tuple[str, str]]:
    """(what, value) lines on how the result was found and how good it is."""
    return list(_facts(report))


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    if "latency_model" in report:
        yield "latency, predicted by a model", _interval(report)
    if "board" in report:
        yield "measured on", "; ".join([report["board"], *report["warnings"]])
    yield from _origin(report)
    certificate = report["certificate"]
    verdict = "passed" if certificate["passed"] else "FAILED"
    yield "certificate", f"{verdict}, largest relative error {certificate['max_rel_error']:.1e}"
    if "max_rel_error_compiled" in report:
        yield "compiled against PyTorch", _compiled(report)
    if "bit_exact" in report:
        yield "compiled against the integer reference", _bit_exact(report)
    if "prediction_error" in report:
        yield "predicted against measured", f"{100 * report['prediction_error']:+.1f} %"
    if report.get("sources"):
        yield "kernel latencies", _sources(report["sources"])
    seen = report.get("fidelity") or {}
    if seen.get("top1_agreement") is not None:
        yield f"top-1 agreement, {seen['images']} {seen['on']}", _agreement(seen)
    fallbacks = report.get("fallbacks") or []
    if fallbacks:
        share = sum(f["share"] for f in fallbacks)
        count = f"{len(fallbacks)} kernel{'s' * (len(fallbacks) != 1)}"
        yield "without a schedule rule", f"{count}, {100 * share:.1f} % of the time"
    if "energy_source" in report:
        yield "energy", str(report["energy_source"])


def _origin(report: Report) -> Iterator[tuple[str, str]]:
    """What was asked and how well the search did; or the plan that was applied."""
    if "plan" in report:
        yield "plan", str(report["plan"])
        return
    budget, search = report["budget"], report["search"]
    yield "budget", ", ".join(f"{k.removesuffix('_us')} {v}" for k, v in budget.items())
    yield "optimality gap", f"{_percent(search['gap'])} (search {search['seconds']:.1f} s)"


def _interval(report: Report) -> str:
    """Four of five kernels lie within; the ends are as if all were wrong in one direction."""
    pruned = report["pruned"]
    low, high = (pruned[f"latency_{end}_us"] / 1000 for end in ("low", "high"))
    digits = 2 if low >= SHORT_MS else 4
    return f"{low:.{digits}f} to {high:.{digits}f} ms, {report['latency_model']}"


def _compiled(report: Report) -> str:
    """How far the code is from PyTorch, and what ran it where that was not this machine."""
    error, ran_on = report["max_rel_error_compiled"], report.get("ran_on")
    dtype = report.get("dtype", "float32")
    if error is None and "batch" in report:
        return f"not run: {report.get('not_run', 'there is no GPU of this kind')}"
    if error is None:
        return "not run: it is another machine's, and no emulator is installed (qemu-user-static)"
    computed = "" if dtype == "float32" else f", computed in {dtype}"
    return f"relative error {error:.1e}{computed}" + (f", under {ran_on}" if ran_on else "")


def _bit_exact(report: Report) -> str:
    count, ran_on = report["bit_exact"], report["ran_on"]
    if not count:
        return "not run: it is another machine's, and no emulator is installed (qemu-user-static)"
    return f"{count} inputs bit for bit" + (f", under {ran_on}" if ran_on else "")


def _percent(share: float) -> str:
    return "under 0.01 %" if share < 1e-4 else f"{100 * share:.2f} %"


def _sources(sources: Mapping[str, Any]) -> str:
    text = ", ".join(f"{sources[k]} {k}" for k in ("measured", "interpolated", "modelled"))
    if "newly_modelled" in sources:
        text += f"; {sources['newly_modelled']} newly modelled"
    if "newly_measured" in sources:
        text += f"; {sources['newly_measured']} new, {sources['reused']} reused"
    if sources.get("failed"):
        text += f"; {len(sources['failed'])} could not be measured"
    return text


def _agreement(seen: Mapping[str, Any]) -> str:
    before = (seen.get("before_recovery") or {}).get("top1_agreement")
    now = f"{100 * seen['top1_agreement']:.0f} % (cosine {seen['cosine']:.3f})"
    return now if before is None else f"{100 * before:.0f} % before recovery, {now} after"
