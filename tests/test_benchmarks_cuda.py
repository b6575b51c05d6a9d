"""The GPU benchmarks' parts that need no GPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import aware_vs_blind, cuda, cuda_kernels, cuda_plans
from hwprune.dtype import in_dtype
from hwprune.errors import ArtifactError, LoweringError, TargetError
from hwprune.lower.cuda.source import kernel_code
from hwprune.nvcc import Cubin, Resources
from hwprune.target import load_target
from tests.cuda_cases import CASES


def test_windows_of_calls_are_timed_until_the_device_is_done() -> None:
    done: list[str] = []
    samples = cuda.sample_us(lambda: done.append("call"), lambda: done.append("wait"))
    assert len(samples) == cuda.SAMPLES
    assert all(us > 0 for us in samples)
    assert done[-1] == "wait"
    assert done.count("wait") == cuda.SAMPLES + 2


def test_a_system_that_fails_or_is_late_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = [sys.executable, "-c", "raise SystemExit('no GPU')"]
    assert cuda.in_process(fails, "eager", 1, 30)["failed"] == "no GPU"
    monkeypatch.setattr(cuda, "DEFAULT_LIMIT_S", 0.2)
    late = [sys.executable, "-c", "import time; time.sleep(5)"]
    assert cuda.in_process(late, "eager", 1, 30)["failed"] == "not done after 0.2 s"
    prints = [sys.executable, "-S", "-c", "print('noise'); print('{\"median_us\": 2.5}')"]
    monkeypatch.setattr(cuda, "DEFAULT_LIMIT_S", 30)
    assert cuda.in_process(prints, "eager", 1, 30) == {"median_us": 2.5}
    assert cuda.in_process(late, "eager", 1, 0.2)["failed"] == "not done after 0.2 s"
    assert cuda.in_process(prints, "eager", 1, -3.0)["failed"] == "no time is left"


def test_all_systems_fit_ten_minutes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The whole has a limit, and what takes longest comes last."""
    assert cuda.RUN_LIMIT_S < 600
    given: list[tuple[str, int, float]] = []

    def note(_: Sequence[str], system: str, batch: int, left_s: float) -> dict[str, object]:
        given.append((system, batch, left_s))
        return {}

    monkeypatch.setattr(cuda, "in_process", note)
    cuda.run(tmp_path, cuda.SYSTEMS, cuda.BATCHES)
    assert len(given) == len(cuda.SYSTEMS) * len(cuda.BATCHES)
    assert {system for system, _, _ in given[-3:]} == {"torch_compile"}
    assert all(cuda.RUN_LIMIT_S >= left > 0 for _, _, left in given)


def test_ratios_are_to_the_best_of_pytorch() -> None:
    rows = [
        {"system": "eager", "batch": 1, "median_us": 10.0},
        {"system": "cuda_graph", "batch": 1, "median_us": 5.0},
        {"system": "torch_compile", "batch": 1, "failed": "late"},
        {"system": "hwprune_dense", "batch": 1, "median_us": 6.0},
        {"system": "hwprune_latency", "batch": 1, "median_us": 3.0},
        {"system": "hwprune_macs", "batch": 1, "median_us": 4.0},
        {"system": "hwprune_dense", "batch": 32, "failed": "no GPU"},
    ]
    first, second = cuda.ratios(rows, [PLANNED])
    assert first.pop("importance_gain") == pytest.approx(0.8 / 0.5 - 1)
    assert first.pop("prediction_error") == pytest.approx(0.04)
    assert first == {
        "batch": 1, "dense_to_best_torch": 1.2, "latency_aware_to_dense": 0.5,
        "macs_aware_to_dense": 4 / 6,
    }  # fmt: skip
    assert second["dense_to_best_torch"] is None


PLANNED = {
    "batch": 1,
    "hwprune_latency": {"importance_kept": 0.8, "predicted_us": 2.6, "latency_share": 0.52},
    "hwprune_macs": {"importance_kept": 0.7, "predicted_us": 2.6, "latency_share": 0.52},
    "macs_curve": [
        {"importance_kept": 0.3, "predicted_us": 1.3},
        {"importance_kept": 1.0, "predicted_us": 5.0},
    ],
}


def test_importance_is_compared_at_the_same_measured_latency() -> None:
    """A MACs-aware plan that turns out slower counts as a smaller one that is as fast."""
    assert cuda_plans.gain(PLANNED) == pytest.approx(0.8 / 0.7 - 1)
    same = {"hwprune_latency": 3.0, "hwprune_macs": 3.0}
    assert cuda_plans.gain(PLANNED, same) == pytest.approx(0.8 / 0.7 - 1)
    shorter = PLANNED | {"hwprune_macs": {"importance_kept": 0.5, "predicted_us": 2.2}}
    between = 0.5 + (1.0 - 0.5) * (2.6 - 2.2) / (5.0 - 2.2)  # on the curve, at the same latency
    assert cuda_plans.gain(shorter) == pytest.approx(0.8 / between - 1)
    slower = {"hwprune_latency": 3.0, "hwprune_macs": 6.0}
    assert cuda_plans.gain(PLANNED, slower) == pytest.approx(0.8 / 0.3 - 1)


@pytest.mark.slow
def test_plans_of_a_network_take_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(cuda_plans, "CURVE", (0.6, 0.8))
    monkeypatch.setattr(aware_vs_blind, "BISECTIONS", 5)
    programs, row = cuda_plans.make_plans("rnet", 512, "nvidia-h200", "float16", "80%")
    aware, counted = row["hwprune_latency"], row["hwprune_macs"]
    assert "not calibrated" in row["latencies"]
    assert row["kernel_rows"]["measured"] == 0
    assert aware["latency_share"] <= 0.8
    assert counted["predicted_us"] <= aware["predicted_us"]
    assert counted["importance_kept"] <= aware["importance_kept"] < 1
    assert row["importance_gain"] == cuda_plans.gain(row) >= 0
    assert [p["macs_share"] for p in row["macs_curve"]] == sorted(
        p["macs_share"] for p in row["macs_curve"]
    )
    sizes = {s: sum(p.numel() for p in m.module.parameters()) for s, m in programs.items()}
    assert max(sizes["hwprune_latency"], sizes["hwprune_macs"]) < sizes["hwprune_dense"]


def test_without_a_driver_or_artifacts_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"plans.json cannot be read.*cuda build writes it"):
        cuda.main(["run", str(tmp_path)])
    (tmp_path / "plans.json").write_text('{"target": "nvidia-h200", "batches": []}')
    with pytest.raises(TargetError, match="no NVIDIA driver") as raised:
        cuda.find_gpu("nvidia-h200")
    command = [sys.executable, "-m", "benchmarks.cuda", "run", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: {raised.value}\n")


def test_artifacts_are_timed_without_torch() -> None:
    code = "import sys, benchmarks.cuda, hwprune.deploy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
    traded = {**good, "spill_bytes": 4, "alone": {"registers": 120, "spill_bytes": 0}}
    bad.append({**traded, "dynamic_shared_bytes": 901})
    bad.append({**traded, "alone": {"registers": 255, "spill_bytes": 8}})
    assert cuda_kernels.problems([good, traded, *bad], {"t": 1000}) == bad
    assert "of one block 120, 0" in cuda_kernels.why(traded)
    named = {"model": "m", "target": "t", "dtype": "d"}
    rows = [{**row, **named} for row in (good, traded, *bad)]
    (found,) = cuda_kernels.summary(rows, {"t": 1000})
    assert (found["kernels"], found["problems"], found["traded"]) == (7, 5, 2)


def test_kernels_that_are_known_are_not_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped goes on; another compiler begins anew."""
    compiled: list[int] = []

    def compile_cubin(source: str, _: str) -> Cubin:
        names = sorted(set(re.findall(r"(k\d+_kernel\w*)\(", source)))
        compiled.append(len(names))
        if stop and len(compiled) == 2:
            raise KeyboardInterrupt
        return Cubin(b"", {name: Resources(40, 0, 0, 0) for name in names})

    works = [CASES[name] for name in ("softmax", "max_pool", "slice")]
    monkeypatch.setattr(cuda_kernels, "TOGETHER", 2)
    monkeypatch.setattr("hwprune.nvcc.compile_cubin", compile_cubin)
    monkeypatch.setattr(cuda_kernels, "workloads", lambda *_: works)
    asked = [("resnet50", "nvidia-h200", "float16")]
    out, stop = tmp_path / "k.json", True
    with pytest.raises(KeyboardInterrupt):
        cuda_kernels.collect(asked, [], "nvcc 1", out)
    kept = json.loads(out.read_text())["rows"]
    assert (len(kept), compiled) == (2, [2, 1])
    stop = False
    rows = cuda_kernels.collect(asked, kept, "nvcc 1", out)
    assert (len(rows), compiled[2:]) == (3, [1])
    assert rows[:2] == kept
    assert json.loads(out.read_text())["rows"] == rows
    both = cuda_kernels.collect([("vit_small", "nvidia-h200", "float16")], rows, "nvcc 1", out)
    assert (len(both), compiled[3:]) == (6, [])  # another network's are the same kernels
    cuda_kernels.collect(asked, rows, "nvcc 2", out)
    assert compiled[3:] == [2, 1]


def test_a_kernel_that_spills_is_compiled_for_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def spill(source: str, _: str) -> Cubin:
        one = re.search(r"__launch_bounds__\(\d+, 1\)", source)
        names = set(re.findall(r"(k\d*_kernel\w*)\(", source))
        return Cubin(b"", dict.fromkeys(names, Resources(99, 0, 0, 0) if one else SPILLS))

    monkeypatch.setattr("hwprune.nvcc.compile_cubin", spill)
    target = in_dtype(load_target("nvidia-h200"), "float16")
    (row,) = cuda_kernels.taken([CASES["linear"]], target)
    assert (row["spill_bytes"], row["alone"]["registers"], row["alone"]["spill_bytes"]) == (
        16,
        99,
        0,
    )
    before = {"source": "x", "spill_bytes": 16}  # of a run that did not ask this
    assert cuda_kernels.facts_of([before, {"source": "y", **row}]) == {"y": row}


SPILLS = Resources(80, 0, 16, 8)


def test_a_kernel_that_does_not_compile_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, _: str) -> Cubin:
        if "exp" in kernel_code(source):
            raise LoweringError("nvcc says no")
        return Cubin(b"", {"k0_kernel": Resources(40, 1, 0, 3)})

    monkeypatch.setattr("hwprune.nvcc.compile_cubin", refuse)
    target = in_dtype(load_target("nvidia-h200"), "float16")
    rows = cuda_kernels.taken([CASES["linear"], CASES["softmax"]], target)
    taken = {"registers": 40, "static_shared_bytes": 1, "spill_bytes": 0, "stack_bytes": 3}
    assert rows == [taken, {"failed": "nvcc says no"}]
