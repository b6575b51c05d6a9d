"""On a machine with a GPU: TVM's CUDA runtime runs artifacts, over a driver that only counts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hwprune.cuda_runtime import _runtime_version, why_not_here
from hwprune.deploy import Artifact, Manifest, TensorInfo
from hwprune.report.summary import facts, heading
from hwprune.tvm_runtime import load_tvm
from tests.fake_gpu import make_driver, make_runtime, run_there, runtime_name

BEFORE = """
import json, sys
import torch
from torch import nn
import hwprune
torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(3, 1024, 3, 2), nn.ReLU(), nn.Conv2d(1024, 1024, 1), nn.ReLU(), nn.Conv2d(1024, 8, 1)
).eval()
given = net, (torch.randn(8, 3, 32, 32),)
gpu = {"target": "nvidia-h200", "dtype": "float16"}
"""
TRUSTED = "hwprune.build.compare = lambda *_: 0.0  # kernels compute nothing\n"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the libraries of a machine with a GPU are."""
    folder = tmp_path_factory.mktemp("gpu")
    make_driver(folder)
    make_runtime(folder)
    return folder


def answer(code: str, machine: Path, **environment: str) -> Any:
    """What Python code prints last there, as JSON."""
    done = run_there(code, str(machine), **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_a_budget_holds_on_the_gpu_that_is_there(machine: Path, tmp_path: Path) -> None:
    """Both networks are timed; the model's error is corrected; the report says what was timed."""
    code = f"""{BEFORE}
import hwprune.build
{TRUSTED}
for name, latency in (("share", "70%"), ("time", "0.8ms")):
    out = f"{tmp_path}/{{name}}"
    done, artifact = hwprune.compile_pruned(*given, out=out, latency=latency, **gpu)
print(json.dumps([done.report, artifact.latencies_us(3)]))
"""
    absolute, again_us = answer(code, machine, HWPRUNE_CACHE=str(tmp_path / "cache"))
    relative = json.loads((tmp_path / "share" / "report.json").read_text())
    for report in (relative, absolute):
        assert {report[side]["latency_source"] for side in ("dense", "pruned")} == {"device"}
        assert "predicted by a model" not in heading(report)
        assert "latency_model" not in report
        assert report["board"] == "NVIDIA Fake, 132 multiprocessors"
        assert report["warnings"] == []
        assert dict(facts(report))["measured on"] == report["board"]
        assert report["sources"]["measured"] == 0
        assert report["sources"]["modelled"] > 0  # kernels are priced by the model still
        assert report["max_rel_error_compiled"] == 0.0
        assert "prediction_error" in report
        assert report["ratio"] == pytest.approx(
            report["pruned"]["latency_us"] / report["dense"]["latency_us"], rel=1e-6
        )
    assert 0.5 < relative["ratio"] <= 0.707
    assert 500 < absolute["pruned"]["latency_us"] <= 808
    assert again_us == pytest.approx([absolute["pruned"]["latency_us"]] * 3)


@pytest.fixture(scope="module")
def artifact(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network compiled on that machine."""
    made = tmp_path_factory.mktemp("artifact") / "art"
    code = f"{BEFORE}import hwprune.build\n{TRUSTED}hwprune.compile(*given, **gpu).save('{made}')"
    done = run_there(code, str(machine))
    assert done.returncode == 0, done.stderr[-3000:]
    return made


@pytest.mark.slow
def test_an_artifact_is_one_graph_and_needs_no_torch(machine: Path, artifact: Path) -> None:
    """The first call captures what is between the ends, every later one replays it."""
    code = f"""
import ctypes, json, sys
from hwprune.deploy import load
fake = ctypes.CDLL("{machine / runtime_name()}")
art = load("{artifact}")
replays = ctypes.c_int.in_dll(fake, "fake_replays")
clock = ctypes.c_double.in_dll(fake, "fake_clock_us")
found = [replays.value]
result = art(*art.example_inputs())
found.append(replays.value)
start = clock.value
for _ in range(3):
    art.launch()
art.wait()
found.append(replays.value)
each_us = (clock.value - start) / 3
timed_us = art.latencies_us(2)
print(json.dumps([found, each_us, timed_us, list(result.shape), "torch" in sys.modules]))
"""
    replays, each_us, timed_us, shape, torch = answer(code, machine)
    assert replays == [0, 0, 3]
    assert timed_us == pytest.approx([each_us] * 2)
    assert each_us > 100
    assert shape == [8, 8, 15, 15]
    assert not torch


@pytest.mark.slow
def test_plans_to_compare_are_timed_where_the_gpu_is(machine: Path, tmp_path: Path) -> None:
    """Of a network with two outputs, one launch of which stands alone between others."""
    code = f"""
import json
import hwprune.build
from benchmarks import aware_vs_blind, cuda_plans
{TRUSTED}
cuda_plans.CURVE, aware_vs_blind.BISECTIONS = (0.6, 0.8), 3
programs, row = cuda_plans.make_plans("rnet", 512, "nvidia-h200", "float16", "90%")
print(json.dumps([len(programs), row]))
"""
    count, row = answer(code, machine, HWPRUNE_CACHE=str(tmp_path))
    assert count == 3
    assert row["latencies"] == "measured on NVIDIA Fake, 132 multiprocessors"
    assert 0 < row["hwprune_macs"]["importance_kept"] <= 1
    assert 0 < row["hwprune_latency"]["importance_kept"] < 1


@pytest.mark.slow
def test_outputs_are_compared_where_the_gpu_is(machine: Path) -> None:
    code = f"{BEFORE}hwprune.compile(*given, **gpu)"
    done = run_there(code, str(machine))
    assert "LoweringError" in done.stderr
    assert "the compiled network differs from PyTorch by 1.0e+00" in done.stderr


@pytest.mark.slow
def test_code_is_the_same_with_and_without_a_gpu(machine: Path) -> None:
    """TVM would compile kernels itself, with another compiler, where its CUDA runtime is loaded."""
    code = """
import hashlib, json
from hwprune.cuda_runtime import gpu_architecture
from hwprune.lower.cuda.source import cuda_source
from hwprune.lower.kernels import kernel_for, tvm_target
from hwprune.target import load_target
from tests.cuda_cases import CASES
target = load_target("nvidia-h200")
found = {name: kernel_for(CASES[name], target, 1).func for name in ("conv_1x1", "softmax")}
code = cuda_source(found, tvm_target(target))
import tvm_ffi
there = tvm_ffi.get_global_func("ffi.Module.create.cuda", allow_missing=True) is not None
print(json.dumps([hashlib.sha256(code.encode()).hexdigest(), gpu_architecture(), there]))
"""
    with_gpu, without = answer(code, machine), json.loads(run_there(code, "").stdout)
    assert with_gpu == [without[0], "sm_90", True]
    assert without[1] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"FAKE_CUDA_SM": "80"}, "is for sm_90, this GPU is sm_80 (compile it for this GPU)"),
        ({"FAKE_CUDA_INIT": "100"}, "the NVIDIA driver finds no GPU (see nvidia-smi)"),
        (
            {"FAKE_CUDA_VERSION": "12040"},
            "the NVIDIA driver knows CUDA 12.4, the kernels are compiled by CUDA 13.0 "
            "(a newer driver, or an nvcc of CUDA 12)",
        ),
        ({"FAKE_CUDA_MEMORY": "100000"}, "a smaller --batch"),
    ],
)
def test_what_is_wrong_is_one_message(
    machine: Path, artifact: Path, environment: dict[str, str], said: str
) -> None:
    code = f"""
from hwprune.deploy import load
from hwprune.errors import ArtifactError
try:
    art = load("{artifact}")
    art(*art.example_inputs())
except ArtifactError as error:
    print(str(error).replace("\\n", " "))
"""
    done = run_there(code, str(machine), **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.strip().splitlines()
    assert said in lines[-1]
    assert str(artifact) in lines[-1]


@pytest.mark.slow
def test_cuda_of_a_package_is_found(machine: Path, tmp_path: Path) -> None:
    """TVM looks only where the loader does, and says nothing where libcudart is not there."""
    (tmp_path / "loader").mkdir()
    (tmp_path / "loader" / runtime_name()).touch()  # what the loader finds is no library
    (tmp_path / "home" / "lib").mkdir(parents=True)
    (tmp_path / "home" / "lib" / runtime_name()).symlink_to(machine / runtime_name())
    (tmp_path / "loader" / "libcuda.so.1").symlink_to(machine / "libcuda.so.1")
    code = """
import json
import hwprune.cuda_runtime as cuda
folders = cuda.toolkits()
cuda.toolkits = lambda: [f for f in folders if "/home" in str(f)]
print(json.dumps([cuda.gpu_architecture(), cuda.why_not_here("sm_90")]))
"""
    loader = str(tmp_path / "loader")
    found, why = json.loads(run_there(code, loader, CUDA_HOME=str(tmp_path / "home")).stdout)
    assert (found, why) == ("sm_90", "")
    found, why = json.loads(run_there(code, loader).stdout)
    assert found is None
    assert re.fullmatch(rf"TVM's CUDA runtime cannot be loaded: .*{runtime_name()}.*", why)


def test_without_a_driver_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwprune.cuda_runtime.gpu_architecture", lambda: None)
    monkeypatch.setattr("hwprune.cuda_driver.LIBRARY", "libcuda-that-is-not-there.so.1")
    assert why_not_here("sm_90").startswith("no NVIDIA driver")
    assert _runtime_version()[0] >= 12


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_inputs_are_random_in_every_type(dtype: str, tmp_path: Path) -> None:
    """A GPU that multiplies zeros takes less power, and less time."""
    load_tvm()  # brings NumPy's bfloat16
    info = (TensorInfo("x", (4, 5), dtype),)
    art = Artifact(tmp_path, Manifest("net", "gpu", (), 1, info, info, {}), loaded=False)
    (values,) = art.example_inputs()
    assert str(values.dtype) == dtype
    assert len(set(values.ravel().tolist())) > 10
