"""Bad input through the command line: one clear message, exit status 2, nothing half written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import hwprune
from hwprune import atomic, cli, interrupt
from hwprune.capture import capture
from hwprune.lower.spec import Workload
from hwprune.plan import Plan
from hwprune.prepare import prepare
from hwprune.price import required
from hwprune.progress import Clock
from hwprune.provenance import provenance_of
from hwprune.table import LatencyTable, Row, describe
from hwprune.target import load_target
from tests.small_net import small_net

ROOT = Path(__file__).parents[1]
NET = ("tests.small_net:small_net", "--input", "1,3,32,32")
LINEAR = ("tests.test_bad_input:linear", "--input", "2,12")

WIDE = ("tests.test_bad_input:wide", "--input", "2,64")


def linear() -> torch.nn.Module:
    """The smallest network that can be compiled."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 7))


def wide() -> torch.nn.Module:
    """A network whose files are larger than a disk's probe."""
    return torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 64))


def broken() -> torch.nn.Module:
    """A network whose code fails."""
    raise ZeroDivisionError("no such weights")


@dataclass
class Done:
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run the command line in this process; there must never be a traceback."""
    monkeypatch.chdir(ROOT)

    def run(*words: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert isinstance(end.value.code, int)
        return Done(end.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a kernel would be measured or a network compiled."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("long work was started")

    for name in ("hwprune.latency.measure_kernels", "hwprune.latency.build"):
        monkeypatch.setattr(name, fail)
    monkeypatch.setattr("hwprune.pipeline.build", fail)
    monkeypatch.setattr("hwprune.pipeline.measure_kernels", fail)


def refused(done: Done, *parts: str) -> None:
    """One message with these parts, and exit status 2."""
    assert done.status == 2, done.err
    messages = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(messages) == 1, done.err
    assert done.err.rstrip().endswith(messages[0])  # the last thing that is said
    for part in parts:
        assert part in messages[0]


def nothing_in(directory: Path) -> None:
    assert list(directory.iterdir()) == []


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
        (("tests.small_net:nan_net", *NET[1:], "--latency", "50%"), ("head.weight", "NaN")),
        (("tests.test_bad_input:broken", "--macs", "50%"), ("no such weights", "test_bad_input")),
        (("tests.test_bad_input:ROOT", "--macs", "50%"), ("not callable",)),
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


# Plans


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


# Output directories


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", ["prune", "compile", "lower"])
@pytest.mark.parametrize("where", ["a file", "below a file", "a dangling link", "read only"])
def test_an_output_directory_that_cannot_be_made(
    run: Callable[..., Done], tmp_path: Path, command: str, where: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    out = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "deep" / "out",
        "a dangling link": tmp_path / "link",
        "read only": Path("/proc/out"),  # refuses root as well
    }[where]
    budget = () if command == "lower" else ("--macs", "50%")
    refused(run(command, *LINEAR, *budget, "--out", out), str(out), "choose a directory")
    assert {f.name for f in tmp_path.iterdir()} == {"file", "link"}
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_refuses_is_found_before_long_work(
    run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    done = run("compile", *LINEAR, "--latency", "50%", "--out", tmp_path / "out")
    refused(done, os.strerror(number), "has room")
    nothing_in(tmp_path)


@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_fills_up_while_the_results_are_written(
    run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    out, write = tmp_path / "out", Path.write_bytes
    if there:
        out.mkdir()
        (out / "plan.json").write_text("old")

    def full(self: Path, data: bytes) -> int:
        if self.name == "report.json":
            write(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    done = run("prune", *LINEAR, "--macs", "60%", "--out", out, "--json")
    refused(done, str(out), "No space left on device", "has room")
    if there:
        assert [f.name for f in out.iterdir()] == ["plan.json"]
        assert (out / "plan.json").read_text() == "old"
    else:
        nothing_in(tmp_path)


def limited(words: list[str], environment: dict[str, str], size: int) -> Done:
    """Run the command line in a process that may write no file larger than `size`."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails with EFBIG instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    done = subprocess.run(
        [sys.executable, "-m", "hwprune.cli", *words],
        cwd=ROOT,
        env={**os.environ, **environment, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        preexec_fn=limit,
        timeout=300,
    )
    assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["prune", "compile"])
@pytest.mark.parametrize("size", [1000, 70_000])  # not even the probe; not the model
def test_files_that_really_cannot_be_written(tmp_path: Path, command: str, size: int) -> None:
    (tmp_path / "out").mkdir()
    words = [command, *WIDE, "--macs", "60%", "--out", str(tmp_path / "out"), "--json"]
    done = limited(words, {}, size)
    refused(done)
    assert "File too large" in done.err
    nothing_in(tmp_path / "out")


@pytest.mark.slow
def test_a_latency_table_that_cannot_grow(tmp_path: Path) -> None:
    words = ["compile", *LINEAR, "--latency", "60%", "--out", str(tmp_path / "out"), "--json"]
    done = limited(words, {"HWPRUNE_CACHE": str(tmp_path / "cache")}, 66_000)
    refused(done)
    assert not (tmp_path / "out").exists()


def test_a_directory_in_the_place_of_a_file(run: Callable[..., Done], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "report.json").mkdir(parents=True)
    done = run("prune", *LINEAR, "--macs", "60%", "--out", out, "--json")
    refused(done, str(out), "report.json is a directory")
    assert [f.name for f in out.iterdir()] == ["report.json"]


def test_other_errors_of_the_system_are_messages_too(
    run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    done = run("lower", *LINEAR, "--out", tmp_path / "out")
    refused(done, "gone", "No such file")
    nothing_in(tmp_path)


# Latency tables


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LatencyTable:
    """A latency table of its own, with a row for every kernel of the network."""
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "cache"))
    target = load_target("host")
    program = capture(small_net(), (torch.zeros(1, 3, 32, 32),))
    prepared = prepare(program, target, 1)
    made = LatencyTable.open(provenance_of(target))
    kernels = required(prepared.sites, prepared.candidates)
    made.put(Row(kernel, 1, 5.0, 4.0, 6.0, 10) for kernel in kernels)
    made.close()
    return made


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        ("median_us = 'fast'", "'fast'"),
        ("median_us = -1.0", "-1.0"),
        ("p10_us = 99.0", "outside [99.0"),
        ("repeats = 'x'", "'x'"),
        ("source = 'guess'", "'guess'"),
    ],
)
def test_a_corrupt_row(
    run: Callable[..., Done],
    table: LatencyTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
    part: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("long work was started")

    monkeypatch.setattr("hwprune.latency.build", fail)
    monkeypatch.setattr("hwprune.measure._time_batch", fail)
    with sqlite3.connect(table.path) as database:
        database.execute(f"UPDATE latency SET {damage} WHERE rowid = 3")
        key = database.execute("SELECT workload FROM latency WHERE rowid = 3").fetchone()[0]
    database.close()
    done = run("compile", *NET, "--latency", "50%", "--out", tmp_path / "out")
    refused(done, str(table.path), describe(Workload.from_key(key)), part, "delete the file")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("content", [b"not a database" * 1000, b"SQLite format 3\0" + b"\1" * 5000])
def test_a_table_that_is_no_database(
    run: Callable[..., Done], table: LatencyTable, tmp_path: Path, content: bytes
) -> None:
    for extra in ("-wal", "-shm"):
        Path(f"{table.path}{extra}").unlink(missing_ok=True)
    table.path.write_bytes(content)
    done = run("compile", *NET, "--latency", "50%", "--out", tmp_path / "out")
    refused(done, str(table.path), "delete the file to measure again")
    assert not (tmp_path / "out").exists()
    assert table.path.read_bytes() == content


@pytest.mark.usefixtures("no_work")
def test_a_cache_that_cannot_be_made(
    run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "file"))
    done = run("profile", *NET)
    refused(done, "file", "set HWPRUNE_CACHE")


def test_a_latency_that_cannot_be_reached(
    run: Callable[..., Done], table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a kernel was measured")

    monkeypatch.setattr("hwprune.measure._time_batch", fail)
    done = run("compile", *NET, "--latency", "1ns", "--out", tmp_path / "out")
    refused(done, "latency", "smallest reachable", "ms", "raise the budget")
    assert not (tmp_path / "out").exists()


# Compilers


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
    done = run(command, "tests.test_bad_input:broken", *budget, "--out", tmp_path / "out")
    refused(done, variable, "no C++ compiler", "Debian package g++")
    nothing_in(tmp_path)


# Artifacts


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled network."""
    out = tmp_path_factory.mktemp("artifact") / "out"
    with pytest.raises(SystemExit) as end:
        cli.main(["lower", *LINEAR, "--out", str(out), "--json"])
    assert end.value.code == 0
    return out


def change_manifest(directory: Path, **changes: object) -> None:
    file = directory / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def drop_threads(directory: Path) -> None:
    file = directory / "manifest.json"
    file.write_text(file.read_text().replace('"threads"', '"thread"'))


def replace_library(directory: Path) -> None:
    content = b"no library"
    (directory / "model.so").write_bytes(content)
    change_manifest(directory, files={"model.so": hashlib.sha256(content).hexdigest()})


def truncate(name: str) -> Callable[[Path], object]:
    def cut(directory: Path) -> None:
        file = directory / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return cut


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (truncate("manifest.json"), ("manifest.json", "not a valid manifest", "line")),
        (truncate("model.so"), ("model.so", "does not match its hash")),
        (lambda d: (d / "model.so").unlink(), ("model.so", "is missing")),
        (lambda d: (d / "manifest.json").unlink(), ("manifest.json", "not an artifact directory")),
        (lambda d: (d / "manifest.json").write_bytes(b"\xff\xfe"), ("manifest.json",)),
        (lambda d: (d / "manifest.json").write_text("[" * 100_000), ("not a valid manifest",)),
        (lambda d: (d / "manifest.json").write_text("[]"), ("not a valid manifest",)),
        (drop_threads, ("manifest.json", "'threads' is missing")),
        (lambda d: change_manifest(d, threads=0), ("manifest.json", "0 threads")),
        (lambda d: change_manifest(d, format=7), ("format 7 is not the 1", "compile the model")),
        (lambda d: change_manifest(d, files={}), ("names no model.so",)),
        (lambda d: change_manifest(d, isa=["warp9"]), ("lacks: warp9",)),
        (
            lambda d: change_manifest(d, inputs=[{"name": "x", "shape": [2, 3], "dtype": "int8"}]),
            ("does not run as its manifest.json says",),
        ),
        (replace_library, ("model.so", "cannot be loaded")),
        (shutil.rmtree, ("manifest.json", "pass the --out of a compile")),
    ],
)
def test_a_corrupt_artifact(
    run: Callable[..., Done],
    artifact: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    parts: tuple[str, ...],
) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(artifact, copied)
    damage(copied)
    refused(run("run", copied, "--repeats", "1"), *parts)


# Everything else


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


# Ctrl-C


@pytest.fixture
def started(tmp_path: Path) -> Any:
    """Start `hwprune compile` with a cache and temporary directory of its own."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "results").mkdir()
    environment = {
        **os.environ,
        "HWPRUNE_CACHE": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path / "tmp"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }
    words = ("compile", *NET, "--latency", "60%", "--out", str(tmp_path / "results" / "out"))
    process = subprocess.Popen(
        [sys.executable, "-m", "hwprune.cli", *words, "--json"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )
    yield process
    process.kill()
    process.communicate()


def loaded(process: subprocess.Popen[str], library: str) -> bool:
    """Whether a process has mapped a library: it is in the middle of importing it."""
    return library in Path(f"/proc/{process.pid}/maps").read_text()


def rows(directory: Path) -> list[str]:
    """The failure texts of all rows of the table; [] where there is none yet."""
    found = list((directory / "cache").rglob("*.sqlite"))
    if not found:
        return []
    database = sqlite3.connect(found[0])
    try:
        return [failure for (failure,) in database.execute("SELECT failure FROM latency")]
    except sqlite3.OperationalError:  # not created yet
        return []
    finally:
        database.close()


MOMENTS: dict[str, Callable[[subprocess.Popen[str], Path], bool]] = {
    "start": lambda process, _: loaded(process, "_ctypes"),
    "import of torch": lambda process, _: loaded(process, "libtorch_cpu"),
    "import of TVM": lambda process, _: loaded(process, "libtvm"),
    "measurement begins": lambda _, path: bool(list((path / "cache").rglob("*.lock"))),
    "measurement under way": lambda _, path: len(rows(path)) > 0,
    "compilation": lambda _, path: bool(list((path / "tmp").glob("hwprune-*"))),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_interruption(started: subprocess.Popen[str], tmp_path: Path, moment: str) -> None:
    deadline = time.monotonic() + 240
    while not MOMENTS[moment](started, tmp_path):
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    before = len(rows(tmp_path))
    os.killpg(started.pid, signal.SIGINT)
    _, err = started.communicate(timeout=120)
    assert (started.returncode, err.count("\n")) == (130, 1), err
    assert err.startswith("interrupted")
    nothing_in(tmp_path / "results")
    nothing_in(tmp_path / "tmp")
    after = rows(tmp_path)
    assert len(after) >= before
    assert not any(after)  # an interrupted kernel is not a kernel that failed


def write_two_files(out: Path) -> None:
    with atomic.replace_directory(out) as staging:
        (staging / "a").write_text("whole")
        (staging / "b").write_text("whole")


def test_an_interruption_while_files_change_places_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = atomic._publish

    def pressed(staging: Path, goal: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        publish(staging, goal)

    monkeypatch.setattr(atomic, "_publish", pressed)
    with interrupt.remembered(), pytest.raises(KeyboardInterrupt):
        write_two_files(tmp_path / "out")
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"a", "b"}
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_an_interruption_that_a_library_swallows_is_noticed(tmp_path: Path) -> None:
    with interrupt.remembered():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            write_two_files(tmp_path / "out")
        with pytest.raises(KeyboardInterrupt), Clock().stage("next"):
            pass
    nothing_in(tmp_path)
