"""Bad requests through the command line: one message, exit status 2, before any long work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.command_line import LINEAR, NET, Done, linear, nothing_in, refused


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", ["prune", "compile"])
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ("tests.small_net:unexportable", "--input", "2,4", "--macs", "50%"),
            ("aten.item", "if x.sum() > 0", "small_net.py:52"),
        ),
        (("tests.small_net:small_net", "--input", "1,5,32,32", "--macs", "50%"), ("(1, 5, 32",)),
        ((*NET, "--input", "1,3,32,32", "--macs", "50%"), ("number", "3 were given")),
        ((*NET, "--latency", "50%", "--target", "x86-64-v5"), ("x86-64-v5", "did you mean 'x86-")),
        ((*NET, "--latency", "130%"), ("latency", "130%", "at most 100%")),
        ((*NET, "--params", "1.5M%"), ("params", "'1.5M%' has no unit", "5M or 50%")),
        ((*NET, "--latency", "50%", "--macs", "0.1%"), ("macs", "smallest reachable", "7.5%")),
        ((*NET, "--latency", "50%", "--params", "10"), ("params", "smallest reachable")),
        (NET, ("no budget given",)),
        ((*NET, "--macs", "50%", "--steps", "0"), ("steps", "0 is impossible", "from 1")),
        ((*NET, "--macs", "50%", "--steps", "3"), ("steps", "unlabelled inputs", "calibrate")),
        (("tests.small_net:nan_net", *NET[1:], "--latency", "50%"), ("head.weight", "NaN")),
        (("tests.command_line:broken", "--macs", "50%"), ("no such weights", "command_line")),
        (("tests.command_line:ROOT", "--macs", "50%"), ("not callable",)),
    ],
)
def test_bad_requests_end_before_long_work(
    run: Callable[..., Done], tmp_path: Path, command: str, words: tuple[str, ...], parts: Any
) -> None:
    refused(run(command, *words, "--out", tmp_path / "out"), *parts)
    nothing_in(tmp_path)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("damage", ["truncated", "empty", "not an archive"])
def test_a_corrupt_pt2(run: Callable[..., Done], tmp_path: Path, damage: str) -> None:
    file, out = tmp_path / "model.pt2", tmp_path / "out"
    torch.export.save(torch.export.export(linear(), (torch.zeros(2, 12),)), file)
    whole = file.read_bytes()
    kept = {"truncated": whole[: len(whole) // 2], "empty": b"", "not an archive": b"x" * 999}
    file.write_bytes(kept[damage])
    refused(
        run("compile", file, "--latency", "50%", "--out", out), "model.pt2", "torch.export.save"
    )
    assert not out.exists()


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("shapes", "part"),
    [(("--input", "2,13"), "(2, 13)"), (("--input", "2,12", "--input", "2,12"), "1 inputs, not 2")],
)
def test_inputs_that_do_not_fit_a_pt2(
    run: Callable[..., Done], tmp_path: Path, shapes: tuple[str, ...], part: str
) -> None:
    file = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(linear(), (torch.zeros(2, 12),)), file)
    refused(run("prune", file, *shapes, "--macs", "50%", "--out", tmp_path / "out"), part)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", ["compile", "lower", "prune"])
@pytest.mark.parametrize("variable", ["PATH", "CXX"])
def test_a_missing_compiler(
    run: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    variable: str,
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "none"))
    budget = () if command == "lower" else ("--latency", "50%")
    done = run(command, "tests.command_line:broken", *budget, "--out", tmp_path / "out")
    refused(done, variable, "no C++ compiler", "Debian package g++")
    nothing_in(tmp_path)


def test_a_defect_is_one_message_and_another_status(
    run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("hwprune.pipeline.prepare", fail)
    done = run("prune", *LINEAR, "--macs", "50%", "--out", tmp_path / "out")
    assert done.status == 1
    assert "RuntimeError: first line\n" in done.err
    assert "HWPRUNE_TRACEBACK=1" in done.err
    nothing_in(tmp_path)


def test_a_mistyped_option(run: Callable[..., Done]) -> None:
    done = run("prune", *LINEAR, "--mac", "50%")
    assert done.status == 2
    assert "No such option" in done.err
