"""Operators of int8 networks in float32: every one against PyTorch, on emulated boards."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hwprune.capture import capture
from hwprune.errors import LoweringError
from hwprune.lower.mcu.fallback import RULE
from hwprune.lower.mcu.model import lower_to_c
from hwprune.mcu_build import compile_mcu
from hwprune.mcu_float import compile_mcu_float
from hwprune.mcu_price.fallbacks import cut, cut_vectors, facts, fallbacks, steps_apart
from hwprune.mcu_price.network import check_fallbacks, emulate
from hwprune.mcu_program import make_vectors
from hwprune.mcu_vectors import TOLERANCE
from hwprune.quantize.config import QuantConfig
from hwprune.quantize.graph import BY_FEATURE
from hwprune.quantize.quantizer import Quantized, quantize_program
from hwprune.quantize.reference import run_all
from hwprune.target import load_target
from tests.command_line import Done, refused

FALLBACK = QuantConfig(float_fallback=True)
M4 = load_target("cortex-m4")


class Every(nn.Module):
    """Operators of many kinds that have no int8 kernel: with parameters, constants, scratch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 6, 1)
        self.norm, self.layer = nn.GroupNorm(3, 6), nn.LayerNorm(6)
        self.batch = nn.BatchNorm1d(6)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        for norm in (self.norm, self.layer, self.batch):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.norm(self.stem(x))
        rows = x.flatten(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(rows, rows, rows) @ rows.transpose(1, 2)
        image = F.interpolate(self.up(x), scale_factor=2, mode="bilinear")
        near = F.normalize(x, dim=1)[:, [4, 0, 2]] - x.mean(1, keepdim=True)
        features = self.batch(F.relu(x.std((2, 3)) / (x.sum((2, 3)).abs() + 9.0)))
        return mixed, image, near, self.layer(features)


NAMES = {
    "group_norm", "scaled_dot_product_attention", "matmul", "conv_transpose2d",
    "upsample_bilinear2d", "linalg_vector_norm", "expand", "index", "mean", "sub", "std", "sum",
    "div", "layer_norm", BY_FEATURE,
}  # fmt: skip


def quantized(net: nn.Module, *shape: int) -> tuple[Quantized, list[np.ndarray]]:
    images = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    made = quantize_program(capture(net.eval(), (images[:1],)), images, FALLBACK)
    return made, made.integers(images[:2])


@pytest.fixture(scope="module")
def every() -> tuple[Quantized, list[np.ndarray]]:
    return quantized(Every(), 3, 5, 6)


@pytest.mark.slow
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m0plus"])
def test_every_operator_is_pytorch_s(core: str, every: tuple[Quantized, list[np.ndarray]]) -> None:
    graph, inputs = every[0].graph, every[1]
    assert {op.operator.removeprefix("aten.") for op in fallbacks(graph)} == NAMES
    target = load_target(core)
    check_fallbacks(graph, target, inputs)
    model = lower_to_c(graph, target)
    assert [c.rule for c in model.calls].count(RULE) == len(fallbacks(graph))
    vectors = make_vectors(model, inputs)
    steps = steps_apart(graph, inputs)
    assert 1 <= steps <= 3
    assert emulate(model, target, replace(vectors, steps=steps)).run.matching == 2


class Sequences(nn.Module):
    """Recurrence, and attention whose values have the batch in their second dimension."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.gru = nn.GRU(6, 8, batch_first=True)
        self.mixed, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gru(x)[0]
        return self.head(self.mixed(x, x, x, need_weights=False)[0][:, -1])


@pytest.mark.slow
def test_sequences() -> None:
    made, inputs = quantized(Sequences(), 4, 6)
    graph = made.graph
    assert {"aten.gru", "aten.transpose", "aten.select"} <= {o.operator for o in fallbacks(graph)}
    assert any(graph.by_name[op.output].shape[0] == 4 for op in fallbacks(graph))
    both = run_all(graph, inputs)
    alone = [run_all(graph, [x[i : i + 1] for x in inputs]) for i in range(2)]
    for name in (*graph.outputs, *(op.output for op in fallbacks(graph))):
        assert np.allclose(both[name], np.concatenate([one[name] for one in alone]), atol=1e-6)
    check_fallbacks(graph, M4, inputs)


@pytest.mark.slow
def test_networks_in_float32_run_them_too(tmp_path: Path) -> None:
    images = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    done = compile_mcu_float(
        Every().eval(), (images[:1],), out=tmp_path / "out", calibrate=images, name="every"
    )
    rules = [call.rule for call in done.model.calls]
    assert rules.count(RULE) >= len(NAMES) - 2
    assert "mcu.float.conv" in rules
    assert done.run.matching == done.run.count == 4


class Normed(nn.Module):
    """A layer norm between layers that have int8 kernels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 12, 1)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)
        self.example_input_shape = (1, 2, 10, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x)))).mean((2, 3))
        return self.head(self.norm(x))


@pytest.fixture(scope="module")
def normed() -> tuple[Quantized, list[np.ndarray]]:
    return quantized(Normed(), 2, 10, 10)


def test_what_is_too_far_from_pytorch_is_named(normed: tuple[Quantized, list[np.ndarray]]) -> None:
    graph, inputs = normed[0].graph, normed[1]
    vectors, model = cut_vectors(graph, inputs), lower_to_c(cut(graph), M4)
    logits, real = vectors.outputs
    assert (logits.dtype, real.dtype, vectors.tolerance) == (np.int8, np.float32, TOLERANCE)
    built = emulate(model, M4, vectors)
    assert built.run.matching == 2
    assert not built.bit_exact
    far = real.copy()
    far[1] *= np.float32(1 + 3 * TOLERANCE)
    wrong = replace(vectors, outputs=(logits, far))
    with pytest.raises(LoweringError, match=r"1 of 2 outputs .*\(layer_norm_result\) are further"):
        emulate(model, M4, wrong)
    wrong = replace(vectors, outputs=(logits ^ 1, real))  # a single step
    with pytest.raises(LoweringError, match="2 of 2 outputs"):
        emulate(model, M4, wrong)


def test_outputs_may_lie_so_many_steps_apart_and_no_more(
    normed: tuple[Quantized, list[np.ndarray]],
) -> None:
    graph, inputs = normed[0].graph, normed[1]
    model = lower_to_c(graph, M4)
    exact = make_vectors(model, inputs)
    assert exact.outputs[0].max() < 125
    for steps, passes in ((2, True), (1, False)):
        moved = replace(exact, outputs=(exact.outputs[0] + np.int8(2),), steps=steps)
        if passes:
            assert emulate(model, M4, moved).run.matching == 2
            continue
        with pytest.raises(LoweringError, match="reference by more than 1 steps"):
            emulate(model, M4, moved)


class Steep(nn.Module):
    """A function of a float32 result that goes from 0 to 1 within a few of its steps."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(8.0 * F.layer_norm(x, x.shape[1:]))


class Odd(nn.Module):
    """An operator that TVM's importer does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


def test_steps_follow_what_a_difference_becomes() -> None:
    made, inputs = quantized(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), 6)
    assert steps_apart(made.graph, inputs) == 0
    made, _ = quantized(Steep(), 64)
    inputs = made.integers(torch.randn(64, 64, generator=torch.Generator().manual_seed(2)))
    assert steps_apart(made.graph, inputs) > 8
    assert [(f["operator"], f["tolerance"]) for f in facts(made.graph)] == [
        ("aten.layer_norm", 1e-5)
    ]


def test_an_operator_that_tvm_lacks_is_named() -> None:
    made, _ = quantized(Odd(), 8)
    wanted = r"test_mcu_fallback\.py:\d+.*: no float32 kernel for aten\.cumsum on microcontrollers"
    with pytest.raises(LoweringError, match=wanted):
        lower_to_c(made.graph, M4)


@pytest.mark.slow
def test_the_flow_meets_budgets_and_names_the_operator(tmp_path: Path) -> None:
    images = torch.randn(16, 2, 10, 10, generator=torch.Generator().manual_seed(0))
    done = compile_mcu(
        Normed().eval(), (images[:1],), out=tmp_path / "out", calibrate=images,
        budgets={"latency": "70%"}, config=FALLBACK,
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["pruned"]["latency_ms"] <= 0.7 * report["dense"]["latency_ms"]
    (alone,) = report["float_operators"]
    assert alone["operator"] == "aten.layer_norm"
    assert "test_mcu_fallback.py" in alone["where"]
    assert report["output_steps"] == done.vectors.steps >= 1
    assert not report["bit_exact"]
    rules = [kernel["rule"] for kernel in report["kernels"]]
    assert rules.count(RULE) == 1
    readme = (tmp_path / "out" / "README.md").read_text()
    assert f"within {report['output_steps']} steps (operators in float32)" in readme
    for goal in ("run", "host"):
        subprocess.run(["make", "-C", tmp_path / "out", goal], check=True, capture_output=True)


@pytest.mark.slow
def test_the_command_asks_for_it(tmp_path: Path, run: Callable[..., Done]) -> None:
    out = tmp_path / "out"
    words = ("compile", "tests.test_mcu_fallback:Normed", "--out", out)
    on_m4 = (*words, "--target", "cortex-m4")
    refused(run(*on_m4), "no int8 kernel for aten.layer_norm", "--float-fallback")
    only = "only int8 networks for microcontrollers have a fallback"
    refused(run(*on_m4, "--dtype", "float32", "--float-fallback"), only)
    refused(run(*words, "--target", "host", "--macs", "50%", "--float-fallback"), only)
    assert not out.exists()
    done = run(*on_m4, "--float-fallback")
    assert done.status == 0, done.err
    text = " ".join(done.out.split())
    assert "in float32, each within 1e-05 of PyTorch, all others bit for bit:" in text
    assert "aten.layer_norm, " in text
