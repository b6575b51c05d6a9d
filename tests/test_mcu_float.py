"""float32 networks as plain C: every operator against PyTorch, on emulated boards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hwprune.capture import capture
from hwprune.errors import BudgetError, LoweringError
from hwprune.float_emit import emit_floats
from hwprune.float_graph import FloatFunction
from hwprune.lower.mcu.model import lower_to_c
from hwprune.mcu_float import compile_mcu_float
from hwprune.mcu_program import run_on_emulator
from hwprune.mcu_vectors import Vectors
from hwprune.quantize.graph import IntegerGraph, IntegerTensor
from hwprune.quantize.quantizer import fold_for_integers
from hwprune.target import load_target
from tests.command_line import Done


class Every(nn.Module):
    """Every operator that has a float32 kernel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Sequential(
            nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(3, 10, 3, 2, bias=False), nn.BatchNorm2d(10)
        )
        self.dilated = nn.Conv2d(10, 6, (3, 2), padding=(2, 0), dilation=2)
        self.grouped = nn.Conv2d(6, 9, 3, padding=1, groups=3)
        self.depthwise = nn.Conv2d(10, 10, 3, 2, padding=1, groups=10)
        self.gate = nn.Conv2d(10, 10, 1)
        self.slope = nn.PReLU(10)
        self.bare = nn.BatchNorm2d(10)
        self.head = nn.Linear(19 * 2 * 2, 7)
        for norm in (self.stem[2], self.bare):
            nn.init.uniform_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu6(self.stem(x))
        x = x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
        x = F.elu(self.slope(x)) + F.silu(x)
        a = F.gelu(self.grouped(torch.tanh(self.dilated(x))))
        a = F.max_pool2d(F.hardswish(a), 3, 2, padding=1)
        b = self.bare(F.leaky_relu(self.depthwise(x), 0.2))
        b = F.hardsigmoid(F.avg_pool2d(b, 3, 1, padding=1)) * b
        b = F.gelu(
            F.avg_pool2d(F.pad(b, (1, 0, 0, 1)), 2, 2, count_include_pad=False), approximate="tanh"
        )
        a = F.avg_pool2d(a, 2, 1, padding=1, count_include_pad=False)
        both = torch.cat((F.max_pool2d(a, 2), b), 1)
        return torch.softmax(self.head(both.flatten(1)), -1), a.mean((2, 3))


@pytest.fixture(scope="module")
def every() -> tuple[IntegerGraph, Vectors]:
    model, x = Every().eval(), torch.randn(2, 3, 15, 16, generator=torch.Generator().manual_seed(0))
    graph = emit_floats(fold_for_integers(capture(model, (x,))))
    with torch.no_grad():
        outputs = tuple(made.numpy() for made in model(x))
    return graph, Vectors((np.ascontiguousarray(x.permute(0, 2, 3, 1)),), outputs, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m0plus"])
def test_every_operator_is_pytorch_s(
    core: str, every: tuple[IntegerGraph, Vectors], tmp_path: Path
) -> None:
    graph, vectors = every
    kinds = {op.kind.removeprefix("float_") for op in graph.operators}
    assert kinds >= {"conv2d", "linear", "pair", "pool", "mean", "pad", "prelu", "softmax"}
    assert {op.function for op in graph.operators if isinstance(op, FloatFunction)} == {
        "elu", "silu", "gelu", "tanh", "sigmoid", "hardswish", "leaky_relu", "hardsigmoid",
        "gelu_tanh",
    }  # fmt: skip
    target = load_target(core)
    run = run_on_emulator(lower_to_c(graph, target), target, vectors, tmp_path)
    assert run.differing == ()
    assert run.matching == run.count == 2


def test_what_is_too_far_from_pytorch_is_noticed(tmp_path: Path) -> None:
    x, y = (IntegerTensor(name, (1, 4), "float32") for name in "xy")
    graph = IntegerGraph(
        "g", (x, y), (FloatFunction("f", ("x",), "y", "", "tanh", ()),), ("x",), ("y",)
    )
    given = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    wanted = np.tanh(given)
    wanted[1] *= np.float32(1 + 3e-5)
    wanted[2, 0] = 5.0
    target = load_target("cortex-m4")
    model = lower_to_c(graph, target)
    run = run_on_emulator(model, target, Vectors((given,), (wanted,), 1e-5), tmp_path)
    assert (run.matching, run.count, run.differing) == (1, 3, (0,))


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(F.relu(x), 1)


def test_an_operator_without_kernel_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        LoweringError, match=r"test_mcu_float.py:\d+ .*: no float32 kernel for .*cumsum"
    ):
        compile_mcu_float(Odd(), (torch.randn(2, 3, 4, 4),), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("budget", [{"latency": "3ms"}, {"sram": "64KiB"}, {"flash": "1MiB"}])
def test_a_budget_that_needs_prices_is_refused(tmp_path: Path, budget: dict[str, str]) -> None:
    with pytest.raises(BudgetError, match=f"no {next(iter(budget))} budget for float32"):
        compile_mcu_float(Odd(), out=tmp_path / "out", budgets=budget)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x))).mean((2, 3))


@pytest.mark.slow
def test_the_command_prunes_and_compiles(tmp_path: Path, run: Callable[..., Done]) -> None:
    torch.manual_seed(0)
    program = torch.export.export(Small().eval(), (torch.randn(1, 2, 12, 12),))
    torch.export.save(program, tmp_path / "small.pt2")
    words = ("compile", tmp_path / "small.pt2", "--out", tmp_path / "out", "--macs", "60%")
    done = run(*words, "--target", "cortex-m4", "--dtype", "float32", "--json")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert report["cycles"] > report["instructions"]
    assert report["macs"] <= 0.6 * 144 * (2 * 9 * 16 + 16 * 4)
    assert (report["dtype"], report["latency_source"]) == ("float32", "model")
    assert "hwprune_float.h" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "hwprune_float.h").is_file()
    on_m4 = ("--target", "cortex-m4", "--dtype")
    for more, message in (
        ((*on_m4, "float16"), "no kernels in float16"),
        ((*on_m4, "float32", "--sram", "64KiB"), "no sram budget for float32"),
        ((*on_m4, "float32", "--threads", "2"), "a microcontroller has one core"),
        (("--target", "host", "--dtype", "int4"), "unknown type 'int4'"),
    ):
        done = run(*words, *more)
        assert done.status == 2
        assert message in " ".join(done.err.split())
