"""docs/coverage.md: what is pruned, declined and failed, from the rows of the coverage benchmark.

In: the document `{"machine", "versions", "date", "rows"}`. Out: Markdown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwprune.atomic import write_text

PAGE = Path(__file__).resolve().parent.parent / "docs" / "coverage.md"
STATUSES = ("pass", "declined", "fail")
Document = Mapping[str, Any]
Row = Mapping[str, Any]

_INTRODUCTION = """# Coverage

The smallest model of every architecture family, with random weights: captured, coupled, pruned at
random to half of its multiply-accumulates, certified in float64 on values and gradients, saved and
loaded, and trained for a step. Every model in a process of its own, on one thread.

- **pass**: all of that went well.
- **declined**: torch.export refuses the model, or no channel of it can be removed; the reason says
  which operator and where.
- **fail**: anything else.

*Prunable* is the share of the parameters that lie in some removable unit's rows, columns or slices.
*MACs* is the share of multiply-accumulates that the pruned model keeps: one half, or what is left
when every group keeps half of its units, where one half is out of reach. The errors are relative to
the silenced original; seconds are processor time. Detectors are their backbones and heads; timm
models of more than 200 million parameters are built with four blocks, transformers with two.
"""


def write_page(document: Document, path: Path = PAGE) -> None:
    """Write the page, all or nothing."""
    write_text(path, page(document))


def page(document: Document) -> str:
    """The whole page as Markdown."""
    rows = document["rows"]
    known = ", ".join(f"{k} {v}" for k, v in document["versions"].items() if v is not None)
    parts = [
        _INTRODUCTION,
        f"Written by `python -m benchmarks.coverage --out benchmarks/results/coverage.json` on "
        f"{document['date'][:10]} with {known}.\n",
        *([f"{document['note']}\n"] if "note" in document else []),
        *_section("", summary(rows, document["families"])),
        *_section("", not_run(rows)),
        *_section("What is not pruned whole", exceptions(rows)),
        *_section("Operators that keep channels", reasons(rows)),
    ]
    for library in dict.fromkeys(r["library"] for r in rows):
        parts += _section(library, models([r for r in rows if r["library"] == library]))
    return "\n".join(parts)


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [*([f"## {title}\n"] if title else []), "\n".join(lines), ""] if lines else []


def summary(rows: Sequence[Row], families: Mapping[str, int]) -> list[str]:
    """How many models pass, are declined and fail, and the worst and the slowest of them.

    `families` says how many each library has, run or not.
    """
    heads = ("library", "families", "run", "models", *STATUSES, "pass %")
    lines = _head(*heads, "largest error", "slowest coupling, s")
    libraries = [[lib] for lib in dict.fromkeys(r["library"] for r in rows)]
    for names in [*libraries, [lib for (lib,) in libraries]] if len(libraries) > 1 else libraries:
        mine = [r for r in rows if r["library"] in names]
        counts = [sum(r["status"] == s for r in mine) for s in STATUSES]
        errors = [_error(r) for r in mine if r["status"] == "pass"]
        slowest = max((r.get("couple_seconds", 0.0) for r in mine), default=0.0)
        name = names[0] if len(names) == 1 else "**all**"
        share = f"{100 * counts[0] / len(mine):.1f}"
        worst = f"{max(errors, default=0.0):.0e}"
        known = sum(families[n] for n in names)
        run = len({(r["library"], r["family"]) for r in mine})
        lines.append(_row(name, known, run, len(mine), *counts, share, worst, f"{slowest:.1f}"))
    return lines


def not_run(rows: Sequence[Row]) -> list[str]:
    """Says for how many models a step was left out, if it was for any."""
    left = sum(r["status"] == "pass" and "save_seconds" not in r for r in rows)
    return [f"Saving and loading was left out for {left} of them (a dash)."] if left else []


def _error(row: Row) -> float:
    """The larger of the errors on values and on gradients."""
    return max(row["max_rel_error"] or 0.0, row.get("gradient_rel_error") or 0.0)


def exceptions(rows: Sequence[Row]) -> list[str]:
    """The models that do not pass, each with its reason."""
    odd = [r for r in rows if r["status"] != "pass"]
    if not odd:
        return []
    cells = [_row(r["library"], r["model"], r["status"], _plain(r["reason"])) for r in odd]
    return [*_head("library", "model", "status", "reason", text=4), *cells]


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def reasons(rows: Sequence[Row]) -> list[str]:
    """How many channels each operator keeps, for which reason, and in how many models."""
    channels: Counter[str] = Counter()
    models: Counter[str] = Counter()
    for row in rows:
        for reason, count in row.get("frozen", {}).items():
            channels[reason] += count
            models[reason] += 1
    ordered = sorted(channels, key=lambda r: (-channels[r], r))
    lines = [_row(f"`{_plain(r)}`", models[r], channels[r]) for r in ordered]
    return [*_head("operator: reason", "models", "channels"), *lines]


def models(rows: Sequence[Row]) -> list[str]:
    """One line a model, those of one family beside each other."""
    lines = _head(
        "family", "model", "status", "params, M", "prunable %", "groups", "units", "MACs %",
        "error", "gradients", "capture s", "couple s", "rewrite s", "verify s", "save s",
        "peak MiB", text=3,
    )  # fmt: skip
    for r in sorted(rows, key=lambda r: (r["family"], r["model"])):
        seconds = (_number(r, f"{k}_seconds", ".1f") for k in _TIMED)
        lines.append(
            _row(
                r["family"],
                r["model"],
                r["status"],
                _number(r, "parameters", ".1f", 1e-6),
                _number(r, "prunable_share", ".1f", 100),
                r.get("groups", "-"),
                r.get("units", "-"),
                _number(r, "macs_share", ".1f", 100),
                _number(r, "max_rel_error", ".0e"),
                _number(r, "gradient_rel_error", ".0e"),
                *seconds,
                _number(r, "peak_rss_mib", ".0f"),
            )
        )
    return lines


_TIMED = ("capture", "couple", "rewrite", "verify", "save")


def _number(row: Row, key: str, form: str, scale: float = 1.0) -> str:
    value = row.get(key)
    return "-" if value is None else format(scale * value, form)


def _head(*names: str, text: int = 1) -> list[str]:
    aligned = [":--" if i < text else "--:" for i in range(len(names))]
    return [_row(*names), _row(*aligned)]


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
