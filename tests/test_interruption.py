"""Ctrl-C at any moment: status 130, nothing half written, measurements kept."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hwprune import atomic, interrupt
from hwprune.progress import Clock
from tests.command_line import NET, ROOT, nothing_in


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Ctrl-C does what it does in a terminal, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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


def test_an_interruption_is_over_with_its_block(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), interrupt.remembered():
        signal.raise_signal(signal.SIGINT)
    assert not interrupt.seen()
    write_two_files(tmp_path / "out")
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"a", "b"}


class HalfMade:
    """As a library's object whose `__init__` was interrupted: it has nothing to remove."""

    def __del__(self) -> None:
        raise AttributeError("directory")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("pressed", [True, False])
def test_what_an_interruption_left_half_made_is_not_reported(
    pressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    with contextlib.suppress(KeyboardInterrupt), interrupt.remembered():
        made = HalfMade()
        if pressed:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        del made
    assert len(told) == (0 if pressed else 1)
