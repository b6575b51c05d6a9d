"""The report: every number that was asked for, in one file that needs nothing else."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hwprune.report import facts, print_groups, print_report, rows, to_html, write_report

REPORT: dict[str, Any] = {
    "model": "net <b> & [bold]co[/bold]",
    "target": "host",
    "threads": 2,
    "budget": {"latency_us": "50%", "macs": "300M"},
    "dense": {
        "params": 4_652_008, "macs": 385_187_552, "weight_bytes": 18_608_032,
        "latency_us": 9131.3, "predicted_us": 9049.5, "energy_uj": 1900.0,
        "activation_bytes": 8_028_160,
    },
    "pruned": {
        "params": 1_730_880, "macs": 196_588_208, "weight_bytes": 6_923_520,
        "latency_us": 4591.2, "predicted_us": 4524.3, "energy_uj": 920.0,
        "activation_bytes": 4_014_080,
    },
    "ratio": 0.5086,
    "prediction_error": -0.017,
    "max_rel_error_compiled": 1.02e-6,
    "energy_source": "model: a table",
    "search": {"objective": 45.9, "bound": 45.9, "gap": 0.0031, "seconds": 0.4},
    "certificate": {"max_rel_error": 1.2e-15, "reference": "silenced", "passed": True},
    "seconds": {"capture": 4.0, "measure kernels": 52.7},
    "fidelity": {
        "top1_agreement": 0.5, "cosine": 0.8, "images": 40, "on": "held-out images",
        "before_recovery": {"top1_agreement": 0.1, "cosine": 0.2},
    },
    "sources": {
        "measured": 573, "interpolated": 5683, "modelled": 0, "newly_measured": 337, "reused": 9,
        "failed": [],
    },
    "groups": [{"name": "_blocks.0.$x$", "before": 32, "after": 16}],
    "kernels": [
        {
            "name": "conv2d", "parameter": "stem.conv.weight", "rule": "conv<3>", "reason": "",
            "dense_us": 610.0, "pruned_us": 573.0, "source": "device",
        },
        {
            "name": "pool", "parameter": "", "rule": "pool", "reason": "", "dense_us": 10.0,
            "pruned_us": 5.0, "source": "device",
        },
    ],
    "fallbacks": [{"kernel": "roll", "share": 0.034}],
    "curve": [
        {"budget_us": 9049.5, "predicted_us": 9049.5, "importance_kept": 1.0},
        {"budget_us": 4524.7, "predicted_us": 4524.3, "importance_kept": 0.93},
    ],
    "recovery": [{"layer": "a", "before": 1.0, "after": 0.1}, {"layer": "b", "before": 0.0,
                  "after": 0.0}],
    "frozen": [{"name": "head", "reason": "is an output of the model"}],
}  # fmt: skip


class Page(HTMLParser):
    """Collects what a page shows and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def terminal(report: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=120)
    print_report(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def without_latency() -> dict[str, Any]:
    report = copy.deepcopy(REPORT)
    for key in ("ratio", "prediction_error", "sources", "kernels", "fallbacks", "curve",
                "energy_source", "max_rel_error_compiled"):  # fmt: skip
        del report[key]
    for side in ("dense", "pruned"):
        for key in ("latency_us", "predicted_us", "energy_uj", "activation_bytes"):
            del report[side][key]
    report["recovery"] = []
    report["fidelity"] = {"top1_agreement": None, "cosine": None, "images": 0, "on": "nothing"}
    return report


def test_json_is_the_report() -> None:
    assert json.loads(write_report(REPORT)["report.json"]) == REPORT


def test_the_page_refers_to_nothing_outside() -> None:
    page = Page(write_report(REPORT)["report.html"].decode())
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object"}
    references = [a[k] for _, a in page.tags for k in ("src", "href") if a.get(k)]
    assert len(references) == 4
    assert all(str(r).startswith("data:image/svg+xml;base64,") for r in references)


def test_the_page_fits_a_phone() -> None:
    page = Page(to_html(REPORT))
    viewport = next(a for tag, a in page.tags if a.get("name") == "viewport")
    assert "width=device-width" in str(viewport["content"])
    for tag, attributes in page.tags:
        if tag == "img":
            drawn = ElementTree.fromstring(base64.b64decode(str(attributes["src"]).split(",")[1]))
            points = float(drawn.attrib["width"].removesuffix("pt"))
            assert points <= 330  # 440 CSS pixels: hardly scaled on a phone


def test_the_page_shows_what_was_found() -> None:
    text = Page(to_html(REPORT)).text
    for shown in ("9.13", "4.59", "0.509", "573 measured", "-1.7", "stem.conv", "conv<3>", "roll",
                  "net <b> & [bold]co[/bold]", "is an output of the model", "0.31"):  # fmt: skip
        assert shown in text, shown
    assert "1.97× faster" in text


def test_plots_are_the_same_on_every_run() -> None:
    assert to_html(REPORT) == to_html(copy.deepcopy(REPORT))


def test_the_terminal_shows_it_too() -> None:
    text = terminal(REPORT)
    for shown in ("9.13", "4.59", "0.509", "latency 50%, macs 300M", "[bold]co[/bold]", "2 threads",
                  "10 % before recovery, 50 %", "1 kernel, 3.4 %", "0.31 %"):  # fmt: skip
        assert shown in text, shown


def test_groups_are_shown_whole_in_a_narrow_terminal() -> None:
    members = [{"parameter": f"blocks.{i}.attention.query.weight", "dim": 0} for i in range(6)]
    group = {"name": "blocks.0.attention.query", "width": 6, "unit_size": 64, "members": members,
             "through_norm_statistics": True}  # fmt: skip
    frozen = {"name": "head", "width": 3, "reason": "aten.lstm.input: no rule for this operator",
              "source": "models/recurrent.py:12  x = self.layers[i](x)"}  # fmt: skip
    console = Console(file=io.StringIO(), width=64)
    found = {"model": "net", "groups": [group], "branches": [], "frozen": [frozen]}
    print_groups(found, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    columns = [
        "".join(cells)
        for size in (5, 4)
        for cells in zip(*(r for r in rows if len(r) == size), strict=True)
    ]
    for shown in ("blocks.0.attention.query", "64rows", "blocks.3.attention.query.weight[0]",
                  "and2more", "noruleforthisoperator", "self.layers[i](x)"):  # fmt: skip
        assert any(shown in column.replace(" ", "") for column in columns), shown


def test_a_failed_certificate_is_loud() -> None:
    failed = copy.deepcopy(REPORT)
    failed["certificate"]["passed"] = False
    assert "FAILED" in terminal(failed)
    assert "FAILED" in Page(to_html(failed)).text


def test_without_a_latency_budget() -> None:
    report = without_latency()
    assert [label for label, *_ in rows(report)] == [
        "multiply-accumulates (M)", "parameters (M)", "weights (MB)",
    ]  # fmt: skip
    page = Page(to_html(report))
    assert [tag for tag, _ in page.tags].count("img") == 1  # the groups
    assert "faster" not in page.text
    assert not any("predicted" in what for what, _ in facts(report))
    assert "latency, measured" not in terminal(report)


@pytest.mark.parametrize(("gap", "shown"), [(0.0, "under 0.01 %"), (0.0049, "0.49 %")])
def test_gap(gap: float, shown: str) -> None:
    report = {**REPORT, "search": {**REPORT["search"], "gap": gap}}
    assert dict(facts(report))["optimality gap"].startswith(shown)


def test_the_document_names_every_key() -> None:
    text = (Path(__file__).parents[1] / "docs" / "report.md").read_text()
    documented = set(re.findall(r"`(\w+)`", text))
    assert set(REPORT) <= documented
    assert set(REPORT["dense"]) <= documented
