"""Plans through the command line: applied, or refused with one message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import hwprune
from hwprune import cli
from hwprune.plan import Plan
from tests.command_line import LINEAR, NET, Done, linear, nothing_in, refused


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `hwprune prune` writes for the linear network."""
    out = tmp_path_factory.mktemp("pruned") / "out"
    with pytest.raises(SystemExit) as end:
        cli.main(["prune", *LINEAR, "--macs", "60%", "--out", str(out), "--json"])
    assert end.value.code == 0
    return out


def test_a_plan_is_applied(run: Callable[..., Done], pruned: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "out", pruned / "plan.json"
    done = run("prune", *LINEAR, "--plan", plan, "--out", out, "--json")
    assert done.status == 0, done.err
    report, wanted = (json.loads((d / "report.json").read_text()) for d in (out, pruned))
    assert report["pruned"] == wanted["pruned"]
    assert report["certificate"]["passed"]
    assert (report["plan"], report["budget"]) == (str(plan), {})
    assert json.loads((out / "plan.json").read_text()) == json.loads(plan.read_text())
    done = run("prune", *LINEAR, "--plan", plan, "--out", out)  # shown, and written over the first
    assert done.status == 0
    assert " plan " in done.out


def test_a_plan_is_applied_by_the_library(pruned: Path) -> None:
    inputs = (torch.randn(2, 12),)
    by_path = hwprune.prune(linear(), inputs, plan=pruned / "plan.json")
    by_value = hwprune.prune(linear(), inputs, plan=Plan.load(pruned / "plan.json"))
    assert by_path.plan == by_value.plan
    assert by_path.report["pruned"] == by_value.report["pruned"]
    state = by_path.module.state_dict()
    by_value.module.load_state_dict(state, strict=True)
    assert torch.equal(by_value.module(*inputs), by_path.module(*inputs))


def test_a_plan_is_applied_and_compiled(
    run: Callable[..., Done], pruned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run("compile", *LINEAR, "--plan", pruned / "plan.json", "--out", out, "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["pruned"]["latency_us"] > 0
    assert run("run", out, "--repeats", "2").status == 0


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", ["prune", "compile"])
def test_a_plan_and_a_budget(
    run: Callable[..., Done], pruned: Path, tmp_path: Path, command: str
) -> None:
    words = (*LINEAR, "--plan", pruned / "plan.json", "--macs", "50%", "--out", tmp_path / "out")
    refused(run(command, *words), "a plan and a budget exclude each other")
    nothing_in(tmp_path)


@pytest.mark.usefixtures("no_work")
def test_a_plan_for_another_model(run: Callable[..., Done], pruned: Path, tmp_path: Path) -> None:
    plan = pruned / "plan.json"
    done = run("compile", *NET, "--plan", plan, "--out", tmp_path / "out")
    its = json.loads(plan.read_text())["fingerprint"]
    refused(done, str(plan), "another model", its, "this model's is", "plan this model anew")
    nothing_in(tmp_path)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda text: text[: len(text) // 2], "not a JSON text"),
        (lambda text: "", "not a JSON text"),
        (lambda text: "[" * 100_000, "not a JSON text"),
        (lambda text: "\x00\x01", "not a JSON text"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format 2 is not the 1"),
        (lambda text: '{"kept": 3}', "not a plan"),
        (lambda text: text.replace('"kept"', '"held"'), "'kept' is missing"),
        (lambda text: text.replace('"kept": {"', '"kept": {"no_such'), "different groups"),
        (lambda text: text.replace("[0", "[-1, 0"), "ascend"),
        (lambda text: text.replace("]", ", 999]"), "unit 999 of 16"),
    ],
)
def test_a_corrupt_plan(
    run: Callable[..., Done],
    pruned: Path,
    tmp_path: Path,
    change: Callable[[str], str],
    part: str,
) -> None:
    plan, text = tmp_path / "bad.json", (pruned / "plan.json").read_text()
    plan.write_text(change(text))
    assert plan.read_text() != text
    refused(run("prune", *LINEAR, "--plan", plan, "--out", tmp_path / "out"), "bad.json", part)
    assert [f.name for f in tmp_path.iterdir()] == ["bad.json"]


def test_a_missing_plan(run: Callable[..., Done], tmp_path: Path) -> None:
    words = ("prune", *LINEAR, "--plan", tmp_path / "no.json", "--out", tmp_path / "out")
    refused(run(*words), "no.json", "No such file")
