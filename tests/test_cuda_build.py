"""From a model to a GPU's artifact: nvcc, the files, and what is said where there is no GPU."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hwprune import cuda_runtime, nvcc
from hwprune.build import build
from hwprune.capture import capture
from hwprune.deploy import CUBIN, CUBIN_SOURCE, load
from hwprune.dtype import in_dtype
from hwprune.errors import ArtifactError, LoweringError, ToolchainError
from hwprune.lower.cuda import source
from hwprune.lower.cuda.source import cuda_source, launch_of
from hwprune.lower.kernels import kernel_for, tvm_target
from hwprune.lower.spec import Workload
from hwprune.network_cubin import first_refused
from hwprune.nvcc import REGISTER_LIMIT, Resources, compile_cubin, find_nvcc, read_resources
from hwprune.target import load_target
from tests.cuda_cases import CASES, conv, image

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
SAMPLE = (
    *(CASES[c] for c in ("conv_strided_residual", "conv_gathers_plain_image", "depthwise")),
    *(CASES[c] for c in ("conv_tf32", "linear_float32", "layer_norm", "attention_of_views")),
    conv(image(32, 256, 14, 14), 256, 3),  # of ResNet-50: the largest tile
    conv(image(32, 256, 14, 14, dtype="float32"), 256, 3),
)


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
    """Kernels of each kind, for sm_80, sm_87 and sm_90, within what a block may have."""
    target = load_target(name)
    made = {f"k{i}": kernel_for(work, target, 1) for i, work in enumerate(SAMPLE)}
    code = cuda_source({k: kernel.func for k, kernel in made.items()}, tvm_target(target))
    assert target.gpu is not None
    found = compile_cubin(code, target.gpu.architecture)
    assert found.code.startswith(b"\x7fELF")
    assert set(found.kernels) == {f"{name}_kernel" for name in made}
    for k, kernel in made.items():
        taken, launch = found.kernels[f"{k}_kernel"], launch_of(kernel.func)
        assert taken.spill_bytes == 0
        assert 0 < taken.registers <= REGISTER_LIMIT
        assert taken.registers * launch.threads <= target.gpu.registers_per_sm
        assert launch.shared_bytes + taken.shared_bytes <= target.gpu.shared_bytes_per_block


@pytest.mark.slow
def test_products_use_the_instructions_of_their_type() -> None:
    """In PTX: tensor cores for float16, bfloat16 and TF32, none for float32."""
    target = load_target("nvidia-a100")
    names = ("conv_float32", "conv_tf32", "conv_1x1", "conv_bfloat16_dilated")
    functions = {f"k{i}": kernel_for(CASES[c], target, 1).func for i, c in enumerate(names)}
    code = compile_cubin(cuda_source(functions, tvm_target(target)), "sm_80", ptx=True).code
    text = code.decode()
    assert ".target sm_80" in text
    found = {}
    for part in text.split(".visible .entry ")[1:]:
        found[part[:2]] = set(
            re.findall(r"mma\.sync\.aligned\.m16n8k\d+\.row\.col\.f32\.(\w+)", part)
        )
    assert found == {"k0": set(), "k1": {"tf32"}, "k2": {"f16"}, "k3": {"bf16"}}


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
    code = made.lowered.cuda_source()
    assert (tmp_path / "art" / CUBIN_SOURCE).read_text().strip() == cuda_runtime.digest(code)
    text = made.lowered.executable.as_text()
    assert "cuda_graph.run_or_capture" in text
    if not made.artifact.loaded:  # no GPU here
        with pytest.raises(ArtifactError, match=r"no NVIDIA (GPU|driver)"):
            load(tmp_path / "art")


class Block(nn.Module):
    """A depthwise convolution between two products."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.wide = nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.deep(x))
        x = self.wide(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.slow
def test_a_kernel_that_nvcc_refuses_has_its_layer_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device function of products is taken away: nvcc itself refuses the first of them."""
    whole = source.header()
    assert "hwp_product_simt" in whole
    monkeypatch.setattr(source, "header", lambda: whole.replace("hwp_product_simt", "hwp_other"))
    with pytest.raises(LoweringError) as raised:
        build(capture(Block().eval(), (torch.randn(1, 8, 6, 6),)), load_target("nvidia-h200"), 1)
    said = str(raised.value)
    assert "nvcc cannot compile a kernel" in said
    assert "hwp_product_simt" in said
    assert said.startswith("wide, ")
    assert "x = self.wide(x)" in said or "test_cuda_build.py" in said
    assert "the kernel is conv2d+bias 1x8x6x6" in said
    assert "head" not in said


def test_the_kernel_at_fault_is_found_by_halves() -> None:
    works = [CASES[name] for name in ("depthwise", "conv_1x1", "linear", "softmax", "max_pool")]
    asked: list[int] = []

    def compiles(chosen: Sequence[Workload]) -> LoweringError | None:
        asked.append(len(chosen))
        return LoweringError("refused") if works[3] in chosen else None

    found = first_refused(works, compiles)
    assert found is not None
    assert (found[0], str(found[1])) == (works[3], "refused")
    assert asked == [5, 2, 3, 1, 2, 1]
    assert first_refused(works[:3], compiles) is None


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
