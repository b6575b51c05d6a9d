"""The GPU benchmarks' parts that need no GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import cuda, cuda_kernels


def test_windows_of_calls_are_timed_until_the_device_is_done() -> None:
    done: list[str] = []
    samples = cuda.sample_us(lambda: done.append("call"), lambda: done.append("wait"))
    assert len(samples) == cuda.SAMPLES
    assert all(us > 0 for us in samples)
    assert done[-1] == "wait"
    assert done.count("wait") == cuda.SAMPLES + 2


def test_a_system_that_fails_or_is_late_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = [sys.executable, "-c", "raise SystemExit('no GPU')"]
    assert cuda.in_process(fails, "eager", 1)["failed"] == "no GPU"
    monkeypatch.setattr(cuda, "DEFAULT_LIMIT_S", 0.2)
    late = [sys.executable, "-c", "import time; time.sleep(5)"]
    assert cuda.in_process(late, "eager", 1)["failed"] == "not done after 0.2 s"
    prints = [sys.executable, "-S", "-c", "print('noise'); print('{\"median_us\": 2.5}')"]
    monkeypatch.setattr(cuda, "DEFAULT_LIMIT_S", 30)
    assert cuda.in_process(prints, "eager", 1) == {"median_us": 2.5}


def test_all_systems_fit_ten_minutes() -> None:
    """The limits of all that is run, but for what a process needs to start."""
    limits = [cuda.LIMIT_S.get(s, cuda.DEFAULT_LIMIT_S) for s in cuda.SYSTEMS]
    assert len(cuda.BATCHES) * cuda.SAMPLES * cuda.WINDOW_S * len(cuda.SYSTEMS) < 60
    assert max(limits) < 600


def test_ratios_are_to_the_best_of_pytorch() -> None:
    rows = [
        {"system": "eager", "batch": 1, "median_us": 10.0},
        {"system": "cuda_graph", "batch": 1, "median_us": 5.0},
        {"system": "torch_compile", "batch": 1, "failed": "late"},
        {"system": "hwprune_dense", "batch": 1, "median_us": 6.0},
        {"system": "hwprune_pruned", "batch": 1, "median_us": 3.0},
        {"system": "hwprune_dense", "batch": 32, "failed": "no GPU"},
    ]
    first, second = cuda.ratios(rows)
    assert first == {"batch": 1, "dense_to_best_torch": 1.2, "pruned_to_dense": 0.5}
    assert second["dense_to_best_torch"] is None


def test_an_artifact_of_a_gpu_is_not_timed_here(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="not an artifact directory"):
        cuda.time_hwprune(tmp_path)


def test_kernels_that_spill_or_do_not_fit_are_found() -> None:
    good = {
        "target": "t", "registers": 100, "spill_bytes": 0, "dynamic_shared_bytes": 900,
        "static_shared_bytes": 100,
    }  # fmt: skip
    bad = [
        {**good, "spill_bytes": 4},
        {**good, "dynamic_shared_bytes": 901},
        {"target": "t", "failed": "nvcc says no"},
    ]
    assert cuda_kernels.problems([good, *bad], {"t": 1000}) == bad
