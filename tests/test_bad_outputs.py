"""Places that cannot be written: one message, exit status 2, nothing half written."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import LINEAR, ROOT, WIDE, Done, nothing_in, refused


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
