"""The coverage benchmark: what it calls a pass, and that its page is that of its results."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import coverage, coverage_models, coverage_report, coverage_steps
from benchmarks.child import Outcome
from benchmarks.readme import RESULTS
from examples.torchvision_ops import declare
from hwprune.capture import capture, fingerprint, specialize
from hwprune.couple import couple


def outcome(*steps: str, reason: str | None = None, groups: int = 3, peak: float = 500.0):
    found = {
        "couple": {"groups": groups, "prunable_share": 0.5, "frozen": {"aten.sort: why": 9, "b": 2}}
    }
    return Outcome(tuple((s, found.get(s, {})) for s in steps), reason, False, peak)


def test_status_and_reason_of_an_outcome():
    facts = coverage._facts
    assert facts(outcome(*coverage.STEPS))["status"] == "pass"
    failed = facts(outcome("build", "capture", reason="KeyError: 'x'"))
    assert (failed["status"], failed["reason"]) == ("fail", "couple: KeyError: 'x'")
    refused = facts(Outcome((("declined", {"reason": "no"}),), None, False, 1.0))
    assert (refused["status"], refused["reason"]) == ("declined", "no")
    frozen = facts(outcome(*coverage.STEPS, groups=0))
    assert (frozen["status"], frozen["reason"]) == ("declined", "aten.sort: why (9 channels)")
    large = facts(outcome(*coverage.STEPS, peak=9000.0))
    assert large["status"] == "fail"
    assert "9000 MiB" in large["reason"]


def test_a_plan_keeps_half_the_multiplications():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 8, 1))
    program = capture(net, (torch.randn(1, 3, 12, 12),))
    fixed = specialize(program)
    coupling = couple(fixed)
    products = coverage_steps.contractions(fixed, coupling)
    full = {g.name: g.width for g in coupling.groups}
    counted = [int(np.prod([e.at(full) for e in extents])) for extents in products]
    assert counted == [16 * 100 * 27, 32 * 64 * 144, 8 * 64 * 32]
    plan, share = coverage_steps.half_the_macs(program, fixed, coupling)
    assert 0.4 < share <= 0.5
    assert plan.fingerprint == fingerprint(program)
    assert coverage_steps.prunable_share(program, coupling) == pytest.approx(1 - 8 / 5384, abs=1e-3)


def test_every_family_is_listed_and_the_smallest_is_chosen():
    declare()
    pytest.importorskip("torchvision")
    timm = pytest.importorskip("timm")
    from timm.models._registry import _model_to_module

    listed = {(f.library, f.name): f.models for f in coverage_models.families()}
    modules = {module for library, module in listed if library == "timm"}
    assert modules == {_model_to_module[name] for name in timm.list_models()}
    assert listed["torchvision", "resnet"] == (
        "resnet101", "resnet152", "resnet18", "resnet34", "resnet50",
    )  # fmt: skip
    assert ("torchvision", "efficientnet_v2") in listed
    candidates = coverage_models.smallest("torchvision", listed["torchvision", "resnet"])
    assert list(candidates)[-1] == "resnet18"
    assert list(coverage_models.smallest("timm", listed["timm", "selecsls"]))[-1] == "selecsls42"


def test_a_detector_is_its_backbone_and_heads():
    declare()
    pytest.importorskip("torchvision")
    model, inputs = coverage_models.build("torchvision", "fasterrcnn_mobilenet_v3_large_320_fpn")
    assert [tuple(x.shape) for x in inputs] == [(1, 3, 128, 128), (1, 256, 7, 7)]
    (scores, boxes), (classes, regressions) = model(*inputs)
    assert scores[0].shape[1] * 4 == boxes[0].shape[1]
    assert (classes.shape, regressions.shape) == ((1, 91), (1, 364))


def test_the_page_is_that_of_the_committed_results():
    document = json.loads((RESULTS / "coverage.json").read_text())
    assert coverage_report.PAGE.read_text() == coverage_report.page(document)
    rows = document["rows"]
    assert len({(r["library"], r["family"], r["model"]) for r in rows}) == len(rows)
    for row in rows:
        assert row["status"] in coverage_report.STATUSES
        assert row["reason"] or row["status"] == "pass"


@pytest.mark.slow
def test_coverage_quick(monkeypatch, tmp_path):
    declare()
    pytest.importorskip("torchvision")
    out = tmp_path / "rows.json"
    options = ["--quick", "--library", "torchvision", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["coverage", *options])
    coverage.main()
    (row,) = json.loads(out.read_text())["rows"]
    assert row["model"] == "squeezenet1_1"
    assert row["status"] == "pass", row["reason"]
    assert row["max_rel_error"] < 1e-12
    assert row["prunable_share"] > 0.99
    assert 0.45 < row["macs_share"] <= 0.5
    assert row["peak_rss_mib"] > 50
    monkeypatch.setattr(coverage, "measure", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(sys, "argv", ["coverage", "--keep", *options])
    coverage.main()
    assert len(json.loads(out.read_text())["rows"]) == 1
