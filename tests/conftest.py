"""Every test session measures into a latency table of its own, on two threads at most.

`run` is the command line in this process; `no_work` forbids measuring and compiling.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

import pytest

os.environ.setdefault("TVM_NUM_THREADS", "2")
if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each worker, or their threads wait in turn
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HWPRUNE_CACHE"] = tempfile.mkdtemp(prefix="hwprune-tests-")

from hwprune import cli
from tests.command_line import ROOT, Done


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


LONGEST = (
    "readme", "networks", "compiling", "lower_relax", "verify", "branches", "couple",
    "interruption", "lower_cpu",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left alone with one at the end."""
    rank = {f"test_{name}.py": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a kernel would be measured or a network compiled."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("long work was started")

    for name in ("measure_kernels", "check_latency", "build"):
        monkeypatch.setattr(f"hwprune.latency.{name}", fail)
    monkeypatch.setattr("hwprune.compiling.build", fail)
    monkeypatch.setattr("hwprune.profiling.measure_kernels", fail)
