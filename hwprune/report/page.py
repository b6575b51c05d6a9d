"""The report as one HTML page: no script, no file beside it, readable on a phone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from hwprune.report import plots
from hwprune.report.summary import MEASURED, Report, facts, heading, how, ratio, rows

STYLE = """
:root{color-scheme:light dark}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:64rem;padding:1rem}
h1{font-size:1.4rem;margin:.2rem 0;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:1.6rem 0 .4rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem;
margin:1rem 0}
.card{border:1px solid #8884;border-radius:.6rem;padding:.6rem .8rem}
.card b{display:block;font-size:1.2rem}.card small,.note{opacity:.75}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:.3rem .5rem;border-bottom:1px solid #8883;text-align:right;vertical-align:top}
td:first-child,th:first-child{text-align:left;padding-left:0}
.text td,.text th{text-align:left;overflow-wrap:anywhere}.text td:first-child{width:38%}
.scroll{overflow-x:auto}.scroll td:first-child{overflow-wrap:anywhere;min-width:8rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:0 1.5rem;
align-items:start}
figure{margin:0;background:#fff;border-radius:.6rem;padding:.3rem}
figure img{width:100%;display:block}
summary{cursor:pointer;font-weight:600;margin:1rem 0 .4rem}
"""
_CARDS = (
    ("latency_us", "faster", "latency, {} → {} ms", 1e-3, "{:.2f}"),
    ("macs", "fewer", "multiply-accumulates, {} → {} M", 1e-6, "{:.0f}"),
    ("params", "fewer", "parameters, {} → {} M", 1e-6, "{:.2f}"),
)
_PLOTS = (
    ("Width of each group", "groups", plots.groups),
    ("Latency by kernel", "kernels", plots.kernels),
    ("Importance kept against latency", "curve", plots.curve),
    ("Error of each layer", "recovery", plots.recovery),
)


def to_html(report: Report) -> str:
    """The whole page, plots embedded."""
    title = escape(heading(report))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>hwprune: {title}</title><style>{STYLE}</style>",
        f"<h1>{title}</h1>",
        f"<div class=cards>{''.join(_cards(report))}</div>",
        "<h2>Before and after</h2>",
        _numbers(("", "dense", "pruned", "ratio"), rows(report)),
        "<h2>How it was found, how good it is</h2>",
        _text((), facts(report)),
        f"<div class=plots>{''.join(_figures(report))}</div>",
        *_details(report),
        "</html>",
    ]
    return "\n".join(parts)


def _cards(report: Report) -> Iterator[str]:
    for key, word, label, scale, form in _CARDS:
        if key in report["dense"] and key in report["pruned"]:
            values = (form.format(report[side][key] * scale) for side in ("dense", "pruned"))
            told = label.format(*values)
            if key == "latency_us" and how(report) != MEASURED:
                told += f", {how(report)}"
            yield _card(f"{1 / max(ratio(report, key), 1e-9):.2f}× {word}", told)
    seen = report.get("fidelity") or {}
    if seen.get("top1_agreement") is not None:
        yield _card(f"{100 * seen['top1_agreement']:.0f} %", "top-1 agreement with the dense model")


def _card(value: str, label: str) -> str:
    return f"<div class=card><b>{escape(value)}</b><small>{escape(label)}</small></div>"


def _figures(report: Report) -> Iterator[str]:
    for title, key, plot in _PLOTS:
        if report.get(key):
            image = f"<img alt='{title}' src='{plots.draw(plot, report)}'>"
            yield f"<section><h2>{title}</h2><figure>{image}</figure></section>"


def _details(report: Report) -> Iterator[str]:
    """Tables that are folded until they are asked for."""
    kernels = report.get("kernels") or []
    if kernels:
        lines = [
            (plots.kernel_name(k), k["rule"], f"{k['dense_us']:.0f}", f"{k['pruned_us']:.0f}")
            for k in kernels
        ]
        table = _numbers(("kernel", "schedule rule", "dense µs", "pruned µs"), lines)
        yield _folded(f"All {len(kernels)} kernels", table)
    fallbacks = report.get("fallbacks") or []
    if fallbacks:
        shares = [(f["kernel"], f"{100 * f['share']:.1f} %") for f in fallbacks]
        yield _folded("Kernels without a schedule rule", _numbers(("kernel", "time"), shares))
    frozen = report.get("frozen") or []
    if frozen:
        table = _text(("channels", "reason"), [(f["name"], f["reason"]) for f in frozen])
        yield _folded(f"Not pruned ({len(frozen)})", table)
    stages = [(name, f"{seconds:.1f} s") for name, seconds in report["seconds"].items()]
    total = sum(report["seconds"].values())
    yield _folded(f"Time taken: {total:.0f} s", _numbers(("stage", ""), stages))


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _numbers(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    return f"<div class=scroll><table>{_cells(header, lines)}</table></div>"


def _text(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    return f"<table class=text>{_cells(header, lines)}</table>"


def _cells(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    body = ("".join(f"<td>{_cell(c)}</td>" for c in line) for line in lines)
    return (f"<tr>{head}</tr>" if header else "") + "".join(f"<tr>{b}</tr>" for b in body)


def _cell(content: object) -> str:
    return escape(str(content)).replace(" %", "&nbsp;%")
