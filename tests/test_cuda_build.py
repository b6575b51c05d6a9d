"""From a model to a GPU's artifact: nvcc, the files, and what is said where there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from hwprune import cuda_runtime, nvcc
from hwprune.build import build
from hwprune.capture import capture
from hwprune.deploy import CUBIN, CUBIN_SOURCE, load
from hwprune.dtype import in_dtype
from hwprune.errors import ArtifactError, LoweringError, ToolchainError
from hwprune.lower.cuda.source import cuda_source
from hwprune.lower.kernels import kernel_for, tvm_target
from hwprune.nvcc import REGISTER_LIMIT, Resources, compile_cubin, find_nvcc, read_resources
from hwprune.target import load_target
from tests.cuda_cases import CASES

REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k1_kernel' for 'sm_90'
ptxas info    : Function properties for k1_kernel
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 62 registers, used 1 barriers, 8 bytes cumulative stack size, 512 bytes smem
ptxas info    : Compiling entry function 'k0_kernel' for 'sm_90'
ptxas info    : Function properties for k0_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 400 bytes cmem[0]
"""
SAMPLE = ("conv_strided_residual", "conv_gathers_plain_image", "depthwise")


def small() -> nn.Module:
    """Two convolutions and a classifier."""
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)).eval()


def test_ptxas_report_is_read() -> None:
    assert read_resources(REPORT) == {
        "k1_kernel": Resources(62, 512, 28, 8),
        "k0_kernel": Resources(8, 0, 0, 0),
    }


def test_missing_compiler_names_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(nvcc.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match=r"nvidia-cuda-toolkit.*hwprune\[cuda\]"):
        find_nvcc()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nvidia-a100", "jetson-orin", "nvidia-h200"])
def test_kernels_compile_without_spills(name: str) -> None:
    """One kernel of each kind, for sm_80, sm_87 and sm_90, within what a block may have."""
    target = load_target(name)
    functions = {f"k{i}": kernel_for(CASES[c], target, 1).func for i, c in enumerate(SAMPLE)}
    source = cuda_source(functions, tvm_target(target))
    assert target.gpu is not None
    found = compile_cubin(source, target.gpu.architecture)
    assert found.code.startswith(b"\x7fELF")
    assert set(found.kernels) == {f"{name}_kernel" for name in functions}
    for taken in found.kernels.values():
        assert taken.spill_bytes == 0
        assert 0 < taken.registers <= REGISTER_LIMIT


@pytest.mark.slow
def test_unknown_architecture_and_broken_source_are_one_message() -> None:
    with pytest.raises(LoweringError, match="does not compile for sm_35"):
        compile_cubin("", "sm_35")
    with pytest.raises(LoweringError, match=r"cannot compile a kernel.*nonsense"):
        compile_cubin("__global__ void f() { nonsense; }", "sm_90")


@pytest.mark.slow
def test_artifact_holds_machine_code_and_captures_a_graph(tmp_path: Path) -> None:
    target = in_dtype(load_target("nvidia-h200"), "float16")
    made = build(capture(small(), (torch.randn(4, 3, 16, 16),)), target, 1)
    made.artifact.save(tmp_path / "art")
    manifest = json.loads((tmp_path / "art" / "manifest.json").read_text())
    assert manifest["gpu"] == "sm_90"
    assert {t["dtype"] for t in (*manifest["inputs"], *manifest["outputs"])} == {"float16"}
    assert {CUBIN, CUBIN_SOURCE, "model.so"} <= set(manifest["files"])
    source = made.lowered.cuda_source()
    assert (tmp_path / "art" / CUBIN_SOURCE).read_text().strip() == cuda_runtime.digest(source)
    text = made.lowered.executable.as_text()
    assert "cuda_graph.run_or_capture" in text
    if not made.artifact.loaded:  # no GPU here
        with pytest.raises(ArtifactError, match="no NVIDIA GPU"):
            load(tmp_path / "art")


def test_another_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_runtime, "gpu_architecture", lambda: "sm_80")
    with pytest.raises(ArtifactError, match="is for sm_90, this GPU is sm_80"):
        cuda_runtime.check_gpu("sm_90", "x")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("CUDAError: cudaMalloc: out of memory", "smaller --batch"),
        ("CUDA_ERROR_NO_BINARY_FOR_GPU", "target of this GPU"),
        ("CUDA driver version is insufficient for CUDA runtime version", "newer driver"),
        ("anything else", "otherwise"),
    ],
)
def test_errors_of_cuda_have_hints(text: str, hint: str) -> None:
    assert hint in cuda_runtime.hint_of(RuntimeError(text), "otherwise")


def test_our_machine_code_answers_for_its_source_alone() -> None:
    import tvm_ffi

    cuda_runtime.answer_with(cuda_runtime.digest("a source"), b"cubin")
    callback = tvm_ffi.get_global_func(cuda_runtime.CALLBACK)
    assert bytes(callback("a source")) == b"cubin"
