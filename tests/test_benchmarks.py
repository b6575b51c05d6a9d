"""The benchmarks' harness: fair, bounded in time, and honest about what failed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import analysis_time, common, fuzz, host_latency, systems
from benchmarks.child import Outcome, call, cores_for
from benchmarks.workers import System, Timing, Worker, time_interleaved

HERE = "tests.test_benchmarks"


def sleeper(milliseconds: float):
    return lambda: time.sleep(milliseconds / 1000)


def broken():
    raise ImportError("no module named 'absent_runtime'")


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def fails_later():
    calls = iter(range(6))

    def run() -> None:
        if next(calls) == 5:
            raise ValueError("lost its way")

    return run


def stages(last: float) -> Iterator[tuple[str, int]]:
    yield "first", 1
    print("about to sleep")
    time.sleep(last)
    yield "second", 2


def pinned_and_threads() -> tuple[list[int], str]:
    return sorted(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"]


@pytest.fixture(scope="module")
def timings() -> dict[str, Timing]:
    systems = [
        System("short", f"{HERE}:sleeper", {"milliseconds": 2}),
        System("long", f"{HERE}:sleeper", {"milliseconds": 8}),
        System("absent", f"{HERE}:broken"),
        System("killed", f"{HERE}:dies"),
        System("tired", f"{HERE}:fails_later"),
    ]
    return time_interleaved(systems, threads=1, rounds=3, slice_s=0.02)


def test_every_system_is_timed_in_every_round(timings):
    assert list(timings) == ["short", "long", "absent", "killed", "tired"]
    for name in ("short", "long"):
        assert timings[name].reason is None
        assert len(timings[name].rounds_us) == 3
        assert all(len(samples) >= 3 for samples in timings[name].rounds_us)
    short, long = (common.quantiles(timings[n].samples_us) for n in ("short", "long"))
    assert 2_000 <= short["p10_us"] <= short["median_us"] <= short["p90_us"]
    assert short["median_us"] < long["median_us"]


def test_failures_keep_their_reason(timings):
    assert timings["absent"].reason == "ImportError: no module named 'absent_runtime'"
    assert "-9" in (timings["killed"].reason or "")
    assert timings["tired"].reason == "ValueError: lost its way"
    assert timings["tired"].rounds_us == ()


def test_an_idle_worker_is_stopped_and_leaves_with_the_harness():
    with Worker(System("s", f"{HERE}:sleeper", {"milliseconds": 1}), 1, 60.0) as worker:
        pid = worker._process.pid
        for _ in range(100):
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            if state == "T":
                break
            time.sleep(0.01)
        assert state == "T"
        worker.round(0.01)
        assert worker.timing().samples_us
    assert not Path(f"/proc/{pid}").exists()


def test_a_child_keeps_what_it_gave_before_the_time_out():
    arguments = {"last": 60.0}
    outcome = call(f"{HERE}:stages", arguments, threads=1, timeout_s=0.5, setup_s=300.0)
    assert outcome.timed_out
    assert outcome.reason == "not finished in 0.5 s"
    assert outcome.values == (("first", 1),)
    assert outcome.peak_rss_mib is not None
    assert outcome.peak_rss_mib > 1


def test_a_child_is_pinned_and_its_threads_limited():
    outcome = call(f"{HERE}:pinned_and_threads", {}, threads=1, timeout_s=60.0)
    assert outcome.reason is None
    assert outcome.value == (cores_for(1), "1")


def test_a_failing_child_says_why():
    outcome = call(f"{HERE}:broken", {}, threads=1, timeout_s=60.0)
    assert outcome.reason == "ImportError: no module named 'absent_runtime'"
    assert not outcome.timed_out


def test_envelope(tmp_path):
    out = tmp_path / "new" / "rows.json"
    common.finish(out, [{"model": "m", "median_us": 1.5}], ["no-such-package-at-all"])
    document = json.loads(out.read_text())
    assert list(document) == ["machine", "versions", "date", "rows"]
    assert document["rows"] == [{"model": "m", "median_us": 1.5}]
    assert document["machine"]["cores"] >= 1
    assert document["versions"]["torch"].startswith("2.")
    assert document["versions"]["no-such-package-at-all"] is None
    assert os.uname().nodename not in json.dumps(document["machine"])
    assert [p.name for p in out.parent.iterdir()] == ["rows.json"]


def test_envelope_refuses_what_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        common.finish(tmp_path / "x.json", [{"median_us": float("nan")}])
    assert list(tmp_path.iterdir()) == []


def test_ratios_to_the_best_peer_and_to_the_dense():
    medians = {"eager": 30.0, "openvino": 10.0, "hwprune-dense": 12.0, "hwprune-pruned": 6.0}
    rows = [
        {"model": "m", "threads": 1, "system": system, "median_us": median}
        for system, median in medians.items()
    ]
    rows.append({"model": "m", "threads": 1, "system": "onnxruntime", "median_us": None})
    rows.append({"model": "m", "threads": 2, "system": "hwprune-dense", "median_us": 7.0})
    host_latency.add_ratios(rows)
    assert [row.get("to_best_peer") for row in rows] == [3.0, 1.0, 1.2, 0.6, None, None]
    assert [row.get("to_dense") for row in rows] == [None, None, None, 0.5, None, None]


def test_a_dense_system_that_computes_something_else_is_refused(tmp_path):
    np.save(tmp_path / systems.REFERENCE, np.ones((1, 4), np.float32))
    right = systems._checked(lambda: np.ones((1, 4)), tmp_path, lambda y: y)
    assert right().shape == (1, 4)
    with pytest.raises(ValueError, match=r"differs from PyTorch's by 5\.0e-01"):
        systems._checked(lambda: np.full((1, 4), 1.5), tmp_path, lambda y: y)
    with pytest.raises(ValueError, match="shape"):
        systems._checked(lambda: np.ones(4), tmp_path, lambda y: y)
    with pytest.raises(ValueError, match="differs"):
        systems._checked(lambda: np.full((1, 4), np.nan), tmp_path, lambda y: y)


def test_stages_before_a_time_out_stand_in_the_rows(monkeypatch):
    ended = Outcome((("setup", 0.0), ("capture", 1.5)), "not finished in 60 s", True, 100.0)
    monkeypatch.setattr(analysis_time, "call", lambda *_, **__: ended)
    rows = analysis_time.measure("m", "hwprune", 60.0)
    assert [r["stage"] for r in rows] == [*analysis_time.STAGES["hwprune"], "total"]
    assert [r["status"] for r in rows[:3]] == ["ok", "timeout", "not reached"]
    assert rows[0]["seconds"] == 1.5
    assert rows[-1]["seconds"] is None
    assert rows[-1]["status"] == "timeout"
    assert rows[-1]["reason"] == "not finished in 60 s"


def run_benchmark(monkeypatch, module, out: Path, *options: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--quick", "--out", str(out), *options])
    module.main()
    return json.loads(out.read_text())


@pytest.mark.slow
def test_host_latency_quick(monkeypatch, tmp_path):
    """Eager runs everywhere; a peer that is not installed still has its row and its reason."""
    options = ("--system", "eager", "--system", "openvino", "--rounds", "2")
    document = run_benchmark(monkeypatch, host_latency, tmp_path / "rows.json", *options)
    rows = {row["system"]: row for row in document["rows"]}
    assert set(rows) == {"eager", "openvino"}
    assert rows["eager"]["model"] == host_latency.QUICK_MODEL
    assert 0 < rows["eager"]["p10_us"] <= rows["eager"]["median_us"] <= rows["eager"]["p90_us"]
    if document["versions"]["openvino"] is None:
        assert rows["openvino"]["median_us"] is None
        assert rows["openvino"]["reason"]


@pytest.mark.slow
def test_analysis_time_quick(monkeypatch, tmp_path):
    options = ("--system", "hwprune", "--timeout", "120")
    document = run_benchmark(monkeypatch, analysis_time, tmp_path / "rows.json", *options)
    assert [row["stage"] for row in document["rows"]] == [*analysis_time.STAGES["hwprune"], "total"]
    assert all(row["status"] == "ok" and row["seconds"] >= 0 for row in document["rows"])
    assert document["rows"][-1]["peak_rss_mib"] > 50


def test_fuzz_quick_resumes(monkeypatch, tmp_path):
    monkeypatch.setattr(fuzz, "QUICK_NETWORKS", 3)
    monkeypatch.setattr(fuzz, "BLOCK", 2)
    assert fuzz_rows(monkeypatch, tmp_path) == [(0, 2), (2, 1)]
    monkeypatch.setattr(fuzz, "run", lambda seeds: pytest.fail("was run again"))
    assert fuzz_rows(monkeypatch, tmp_path) == [(0, 2), (2, 1)]


def fuzz_rows(monkeypatch, tmp_path) -> list[tuple[int, int]]:
    monkeypatch.setattr(sys, "argv", ["fuzz", "--quick", "--out", str(tmp_path / "fuzz.json")])
    assert fuzz.main() == 0
    return [(r["first"], r["networks"]) for r in common.rows_of(tmp_path / "fuzz.json")]
