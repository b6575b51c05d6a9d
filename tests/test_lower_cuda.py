"""The GPU rules: their CUDA source, run by a C++ compiler, against torch in float64."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwprune.capture import capture, specialize
from hwprune.compiling import compile, compile_pruned
from hwprune.cuda_emulate import EmulatedKernels
from hwprune.dtype import in_dtype
from hwprune.errors import LoweringError
from hwprune.lower import fold_batch_norm, lower, parameters
from hwprune.lower.cuda import schedule
from hwprune.lower.cuda.context import Context
from hwprune.lower.cuda.source import cuda_source, launch_of
from hwprune.lower.cuda.tiles import TENSOR_TILES, VECTOR_TILES, choose
from hwprune.lower.for_target import fuse_for
from hwprune.lower.kernels import kernel_for, tvm_target
from hwprune.lower.packing import pack, unpack
from hwprune.lower.reference import evaluate
from hwprune.lower.spec import ARITHMETIC, NHWC, NHWC_LAST, Kernel, TensorSpec, Workload, numpy_type
from hwprune.target import load_target
from tests.cuda_cases import CASES, conv, image

TARGET = load_target("nvidia-h200")
# Half a unit in the last place of the result, and what rounded products of it add: float32's sums
# have an error of their own; TF32 rounds factors to 10 bits of mantissa.
TOLERANCES = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 2e-6, "tf32": 1e-3}
LARGE = "conv_in_a_tile_of_eight_warps"


@pytest.fixture(scope="module")
def kernels() -> tuple[list[str], EmulatedKernels]:
    """All kernels in one library, by name."""
    made: dict[str, Kernel] = {}
    for name, workload in CASES.items():
        made[name] = kernel_for(workload, TARGET, 1)
    assert TARGET.gpu is not None
    small = replace(TARGET, gpu=replace(TARGET.gpu, sms=1))  # which gets the largest tile
    made[LARGE] = kernel_for(conv(image(2, 64, 8, 8), 128, 3), small, 1)
    return list(made), EmulatedKernels(list(made.values()), TARGET)


@pytest.mark.parametrize("name", [*CASES, LARGE])
def test_kernel_equals_torch(name: str, kernels: tuple[list[str], EmulatedKernels]) -> None:
    names, emulated = kernels
    i = names.index(name)
    kernel = emulated.kernels[i]
    workload = kernel.workload
    assert kernel.rule.startswith("cuda.")
    rng = np.random.default_rng(i)
    inputs = [_tensor(s, rng) for s in workload.inputs]
    params = [_tensor(s, rng) for s in workload.params]
    if params:
        params[0] = (params[0] / np.sqrt(max(1, params[0][0].numel()))).to(params[0].dtype)
    wanted = evaluate(workload, [t.double() for t in inputs], [p.double() for p in params])
    packed = kernel.pack(tuple(p.float().numpy() for p in params))
    got = emulated.run(i, [*map(_physical, inputs, workload.inputs), *packed])
    found = unpack(torch.from_numpy(got.astype(np.float64)), workload.output)
    assert np.isfinite(got.astype(np.float32)).all()  # the channels that pad a pixel included
    tolerance = TOLERANCES[dict(workload.attrs).get(ARITHMETIC, workload.output.dtype)]
    assert float((found - wanted).abs().max() / wanted.abs().max()) < tolerance


def _tensor(spec: TensorSpec, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(spec.shape)).to(getattr(torch, spec.dtype))


def _physical(tensor: Tensor, spec: TensorSpec) -> np.ndarray:
    """As it lies in memory, with numbers that matter to nobody in the channels that pad a pixel."""
    memory = pack(tensor, spec, 1)
    if spec.layout in (NHWC, NHWC_LAST):
        memory[..., spec.image[1] :] = 7.0
    return memory.float().contiguous().numpy().astype(numpy_type(spec.dtype))


class Net(nn.Module):
    """A strided convolution, an inverted residual, an attention-like gate and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 10, 3, 2, 1), nn.BatchNorm2d(10), nn.ReLU6())
        self.wide = nn.Conv2d(10, 30, 1)
        self.deep = nn.Conv2d(30, 30, 3, 1, 1, groups=30)
        self.thin = nn.Conv2d(30, 10, 1)
        self.gate = nn.Conv2d(10, 10, 1)
        self.head = nn.Linear(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.stem(x)
        x = x + self.thin(torch.relu(self.deep(torch.relu(self.wide(x)))))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(nn.functional.max_pool2d(x, 2).mean((2, 3)))


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [("float16", 1e-5, 2e-3), ("tf32", 1e-5, 2e-3), ("float32", 0, 1e-6)],
)
def test_a_network_of_kernels_equals_torch(dtype: str, least: float, most: float) -> None:
    """The calls in order, through their aliases; rounding shows that a type is what it says."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    target = in_dtype(TARGET, dtype)
    folded = fold_batch_norm(specialize(capture(Net().eval(), (x,))))
    fused = fuse_for(folded, target)
    assert fused.dtype == target.storage
    assert {t.dtype for c in fused.calls for t in c.workload.inputs} == {target.storage}
    distinct: list[Workload] = list(dict.fromkeys(c.workload for c in fused.calls))
    made = {w: kernel_for(w, target, 1) for w in distinct}
    emulated = EmulatedKernels([made[w] for w in distinct], target)
    values = {fused.inputs[0]: x.numpy().astype(target.storage)}

    def read(name: str) -> np.ndarray:
        if name not in values:
            base = fused.aliases[name]
            values[name] = read(base).reshape(fused.specs[name].physical(1))
        return values[name]

    for call in fused.calls:
        weights = parameters.weights(call, made, folded.module)
        arguments = [*map(read, call.args), *weights]
        values[call.output] = emulated.run(distinct.index(call.workload), arguments)
    with torch.no_grad():
        wanted = folded.module(x).numpy()
    found = read(fused.outputs[0]).astype(np.float64)
    assert least < np.abs(found - wanted).max() / np.abs(wanted).max() < most
    products = {made[w].rule for w in distinct if w.op in ("conv2d", "linear")}
    assert {rule.rpartition("_")[2] for rule in products} == {dtype, "cuda.depthwise"}


def test_tf32_changes_products_alone() -> None:
    """The other kernels of a network are float32's, and so are their measured rows."""
    net = specialize(capture(Net().eval(), (torch.randn(2, 3, 16, 16),)))
    folded = fold_batch_norm(net)
    coarse, whole = (
        [c.workload for c in fuse_for(folded, in_dtype(TARGET, t)).calls]
        for t in ("tf32", "float32")
    )
    differ = {a.params[0].shape[1] for a, b in zip(coarse, whole, strict=True) if a != b}
    assert 1 not in differ  # of the depthwise convolution
    assert differ == {3, 10, 30}
    assert all(Workload.from_key(w.key()) == w for w in coarse)


def test_tiles_fit_the_smallest_blocks() -> None:
    """On a block of 48 KiB as on one of 227, and a kernel says what it takes."""
    for shared in (49_152, 232_448):
        context = Context(2, shared, True)
        for rows, cols, chunks, tensor in (
            (12544, 64, 27, True),
            (49, 2048, 256, True),
            (12544, 1000, 512, False),
            (1, 8, 1, False),
        ):
            tile = choose(rows, cols, chunks, 1, tensor, context)
            assert tile.shared_bytes <= shared
    kernel = kernel_for(CASES["conv_1x1"], TARGET, 1)
    launch = launch_of(kernel.func)
    assert launch.shared_bytes <= 232_448
    assert launch.threads % 32 == 0
    assert all(t.rows % (16 * t.warps[0]) == 0 for t, _ in (*TENSOR_TILES, *VECTOR_TILES))


def test_larger_products_get_larger_tiles() -> None:
    """A whole GPU of blocks is worth more than efficient ones."""
    context = Context.of(TARGET)
    large = choose(256 * 3136, 256, 64, 1, True, context)
    small = choose(49, 64, 64, 1, True, context)
    assert large.rows * large.cols > small.rows * small.cols


def test_same_workload_same_source() -> None:
    target = tvm_target(TARGET)
    sources = {cuda_source({"k0": schedule_of(CASES["linear"]).func}, target) for _ in range(2)}
    assert len(sources) == 1
    assert re.search(r"hwp_product<half, \d, \d, \d>", sources.pop())


def schedule_of(workload: Workload) -> Kernel:
    """The rule's kernel, made anew."""
    found = schedule(workload, TARGET)
    assert found is not None
    return found


def test_overflow_of_half_is_named() -> None:
    """Where float32 has a number and float16 infinity."""

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)
            nn.init.constant_(self.layer.weight, 300.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    program = specialize(capture(Large(), (torch.full((2, 4), 100.0),)))
    with pytest.raises(LoweringError, match=r"is 1\.2e\+05, and float16 ends at 65504") as raised:
        lower(program, in_dtype(TARGET, "float16"), 1)
    assert "self.layer(x)" in str(raised.value) or "linear" in str(raised.value)
    assert lower(program, in_dtype(TARGET, "bfloat16"), 1).calls[0].workload.op == "linear"


class Clamped(nn.Module):
    """A product whose large results are clamped in registers, and one whose results are stored."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 32, 1, bias=False), nn.Conv2d(32, 8, 1, bias=False)
        nn.init.constant_(self.first.weight, 300.0)
        nn.init.constant_(self.second.weight, 500.0)

    def forward(self, x: Tensor) -> Tensor:
        """500 times the clamped sum of what is given."""
        x = nn.functional.relu6(self.first(x))
        return self.second(x)


def test_only_stored_values_can_overflow_on_a_gpu() -> None:
    """Sums and what follows in a kernel are float32; on a CPU with float16 sums are too."""
    loud = torch.full((2, 4, 2, 2), 100.0)
    net = Clamped()
    nn.init.constant_(net.second.weight, 1.0)
    program = specialize(capture(net, (loud,)))
    assert lower(program, in_dtype(TARGET, "float16"), 1).calls
    with pytest.raises(LoweringError, match="float16 ends at 65504"):
        lower(program, in_dtype(load_target("cortex-a76"), "float16"), 1)


def test_calibration_images_show_what_overflows() -> None:
    """The example input is quiet; one image of many is not, and its layer is named."""
    quiet = torch.zeros(2, 4, 2, 2)
    images = torch.zeros(5, 4, 2, 2)
    images[4] = 1.0  # alone in the last batch, which is filled with the first again
    program = specialize(capture(Clamped(), (quiet,)))
    target = in_dtype(TARGET, "float16")
    assert lower(program, target, 1).calls
    assert lower(program, target, 1, images[:4]).calls
    with pytest.raises(LoweringError, match=r"is 9\.6e\+04, and float16 ends at 65504") as raised:
        lower(program, target, 1, images)
    assert "self.second(x)" in str(raised.value)


def test_compile_looks_at_the_range_on_calibration_images(tmp_path: Path) -> None:
    quiet = torch.zeros(2, 4, 2, 2)
    with pytest.raises(LoweringError, match="float16 ends at 65504"):
        compile_pruned(
            Clamped(), (quiet,), out=tmp_path / "art", target="nvidia-h200", dtype="float16",
            macs="90%", calibrate=quiet + 1, recover="none", aggregate="sum", importance="l1",
        )  # fmt: skip
    assert not (tmp_path / "art").exists()
    with pytest.raises(LoweringError, match="float16 ends at 65504"):
        compile(Clamped(), (quiet,), target="nvidia-h200", dtype="float16", calibrate=[quiet + 1])
