"""The report: report.json, a self-contained report.html with plots, and tables in the terminal."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

Report = Mapping[str, Any]
DENSE, PRUNED = "#9aa5b1", "#1f77b4"

STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1rem}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.15rem;margin:1.6rem 0 .4rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem}
.card{border:1px solid #8884;border-radius:.6rem;padding:.6rem .8rem}
.card b{display:block;font-size:1.35rem}.card small{opacity:.75}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:.3rem .5rem;border-bottom:1px solid #8883;text-align:right}
td:first-child,th:first-child{text-align:left;overflow-wrap:anywhere}
figure{margin:.5rem 0;overflow-x:auto;background:#fff;border-radius:.6rem}
img{width:100%;min-width:20rem;display:block}.scroll{overflow-x:auto}
.bad{color:#c62828}.ok{color:#2e7d32}
"""


def write_report(report: Report) -> dict[str, bytes]:
    """The report's files by name: report.json and report.html."""
    text = json.dumps(report, indent=1, default=float) + "\n"
    return {"report.json": text.encode(), "report.html": to_html(report).encode()}


def rows(report: Report) -> list[tuple[str, str, str, str]]:
    """(what, dense, pruned, ratio) lines that sum a report up."""
    dense, pruned = report["dense"], report["pruned"]
    lines: list[tuple[str, str, str, str]] = []
    for key, label, scale, form in (
        ("latency_us", "latency, measured (ms)", 1e-3, "{:.2f}"),
        ("predicted_us", "latency, predicted (ms)", 1e-3, "{:.2f}"),
        ("macs", "multiply-accumulates (M)", 1e-6, "{:.1f}"),
        ("params", "parameters (M)", 1e-6, "{:.3f}"),
        ("weight_bytes", "weights (MB)", 1e-6, "{:.2f}"),
        ("energy_uj", "energy, model (uJ)", 1.0, "{:.0f}"),
    ):
        if key in dense and key in pruned:
            a, b = dense[key] * scale, pruned[key] * scale
            ratio = report["ratio"] if key == "latency_us" and "ratio" in report else b / a
            lines.append((label, form.format(a), form.format(b), f"{ratio:.3f}"))
    return lines


def facts(report: Report) -> list[tuple[str, str]]:
    """(what, value) lines on how the result was found and how good it is."""
    search, certificate = report["search"], report["certificate"]
    lines = [
        ("budget", ", ".join(f"{k.removesuffix('_us')} {v}" for k, v in report["budget"].items())),
        ("optimality gap", f"{100 * search['gap']:.2f} % ({search['seconds']:.1f} s)"),
        ("certificate", _certificate(certificate)),
    ]
    if "prediction_error" in report:
        lines.append(("predicted vs measured", f"{100 * report['prediction_error']:+.1f} %"))
    if report.get("sources"):
        s = report["sources"]
        lines.append(
            (
                "kernel latencies",
                f"{s['measured']} measured, {s['interpolated']} interpolated, "
                f"{s['modelled']} modelled; {s['newly_measured']} new, {s['reused']} reused",
            )
        )
    seen = report.get("fidelity") or {}
    if seen.get("top1_agreement") is not None:
        lines.append((f"top-1 agreement ({seen['images']} {seen['on']})", _agreement(seen)))
    fallbacks = report.get("fallbacks") or []
    if fallbacks:
        share = sum(f["share"] for f in fallbacks)
        lines.append(("without a schedule rule", f"{len(fallbacks)} kernels, {100 * share:.1f} %"))
    return lines


def print_report(report: Report, console: Any) -> None:
    """Show a report in the terminal (a Rich console)."""
    from rich.table import Table

    title = f"{report['model']} on {report['target']}, {report['threads']} thread(s)"
    table = Table(title=title, title_justify="left")
    for name in ("", "dense", "pruned", "ratio"):
        table.add_column(name, justify="left" if not name else "right")
    for row in rows(report):
        table.add_row(*row)
    console.print(table)
    notes = Table(show_header=False, box=None)
    for what, value in facts(report):
        notes.add_row(what, value)
    console.print(notes)


def to_html(report: Report) -> str:
    """The whole page, plots embedded."""
    title = html.escape(f"{report['model']} on {report['target']}")
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>hwprune: {title}</title><style>{STYLE}</style>",
        f"<h1>{title}</h1><p>{report['threads']} thread(s)</p>",
        _cards(report),
        "<h2>Before and after</h2>",
        _table(("", "dense", "pruned", "ratio"), rows(report)),
        "<h2>How it was found</h2>",
        _table(("", ""), facts(report)),
    ]
    for heading, key, plot in (
        ("Width of each group", "groups", _plot_groups),
        ("Latency by kernel", "kernels", _plot_kernels),
        ("Importance kept against latency", "curve", _plot_curve),
    ):
        if report.get(key):
            parts += [f"<h2>{heading}</h2>", _figure(plot, report, heading)]
    if report.get("fallbacks"):
        listed = [(f["kernel"], f"{100 * f['share']:.1f} %") for f in report["fallbacks"]]
        parts += ["<h2>Kernels without a schedule rule</h2>", _table(("kernel", "share"), listed)]
    if report.get("frozen"):
        frozen = [(f["name"], f["reason"]) for f in report["frozen"]]
        parts += ["<h2>Not pruned</h2>", _table(("channels", "reason"), frozen)]
    seconds = [(k, f"{v:.1f} s") for k, v in report["seconds"].items()]
    parts += ["<h2>Time taken</h2>", _table(("stage", ""), seconds), "</html>"]
    return "\n".join(parts)


def _certificate(certificate: Mapping[str, Any]) -> str:
    verdict = "passed" if certificate["passed"] else "FAILED"
    return f"{verdict}, largest relative error {certificate['max_rel_error']:.1e}"


def _agreement(seen: Mapping[str, Any]) -> str:
    before = seen.get("before_recovery", {}).get("top1_agreement")
    first = "" if before is None else f"{100 * before:.0f} % before recovery, "
    return f"{first}{100 * seen['top1_agreement']:.0f} % after (cosine {seen['cosine']:.3f})"


def _cards(report: Report) -> str:
    cards = [(label, f"{1 / float(ratio):.2f}x less") for label, _, _, ratio in rows(report)]
    cards = [c for c in cards if "predicted" not in c[0]][:4]
    shown = "".join(
        f"<div class=card><b>{html.escape(v)}</b><small>{html.escape(k)}</small></div>"
        for k, v in cards
    )
    return f"<div class=cards>{shown}</div>"


def _table(header: tuple[str, ...], lines: list[Any]) -> str:
    head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    return f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>"


def _figure(plot: Callable[[Any, Report], None], report: Report, title: str) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    plot(figure, report)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<figure><img alt='{html.escape(title)}' src='data:image/svg+xml;base64,{data}'></figure>"
    )


def _bars(
    figure: Any, names: list[str], before: list[float], after: list[float], unit: str
) -> None:
    figure.set_size_inches(8, max(2.5, 0.22 * len(names) + 1))
    axes = figure.subplots()
    places = range(len(names))
    axes.barh(places, before, color=DENSE, height=0.8, label="dense")
    axes.barh(places, after, color=PRUNED, height=0.5, label="pruned")
    axes.set_yticks(places, names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(y=0.01)
    axes.legend()


def _plot_groups(figure: Any, report: Report) -> None:
    groups = report["groups"]
    _bars(
        figure,
        [g["name"] for g in groups],
        [g["before"] for g in groups],
        [g["after"] for g in groups],
        "units",
    )


def _plot_kernels(figure: Any, report: Report) -> None:
    kernels = sorted(report["kernels"], key=lambda k: -k["dense_us"])[:40]
    _bars(
        figure,
        [k["name"] for k in kernels],
        [k["dense_us"] for k in kernels],
        [k["pruned_us"] for k in kernels],
        "microseconds in the network (device), 40 longest",
    )


def _plot_curve(figure: Any, report: Report) -> None:
    axes = figure.subplots()
    points = report["curve"]
    axes.plot(
        [p["predicted_us"] / 1000 for p in points],
        [100 * p["importance_kept"] for p in points],
        "o-",
        color=PRUNED,
    )
    if "latency_us" in report["pruned"]:
        axes.axvline(
            report["pruned"]["latency_us"] / 1000, color=DENSE, ls="--", label="this model"
        )
        axes.legend()
    axes.set_xlabel("latency, predicted (ms)")
    axes.set_ylabel("importance kept (%)")
    axes.grid(alpha=0.3)
