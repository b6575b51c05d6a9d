"""Kernels compiled side by side: grouped by what they are, the same code on any number of cores."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from hwprune.errors import LoweringError
from hwprune.lower import lower
from hwprune.lower.codegen import GROUP, compile_functions, groups
from hwprune.lower.kernels import kernel_for, tvm_target
from hwprune.lower.spec import Step, Workload
from hwprune.tvm_runtime import load_tvm
from tests.kernel_cases import plain
from tests.lower_helpers import check_network, host, image, static


def functions(count: int) -> dict[str, object]:
    """Kernels that are compiled in a moment."""
    steps = (Step("relu"),)
    work = [Workload("elementwise", (plain(n + 1),), plain(n + 1), (), (), steps)
            for n in range(count)]  # fmt: skip
    made = [kernel_for(w, host(), 2).func for w in work]
    return {f"k{i}": func.with_attr("global_symbol", f"k{i}") for i, func in enumerate(made)}


def test_every_name_is_in_one_module() -> None:
    for count in (1, GROUP, GROUP + 1, 5 * GROUP - 1):
        names = [f"k{i}" for i in range(count)]
        dealt = groups(names)
        assert sorted(name for group in dealt for name in group) == sorted(names)
        assert max(map(len, dealt)) <= GROUP
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert groups([]) == []
    assert groups(["a", "b"] * GROUP)[:2] == [("a",) * GROUP, ("b",) * GROUP]


@pytest.fixture(params=[1, 4])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(request.param)))
    return int(request.param)


_codes: list[list[bytes]] = []


def test_the_code_is_the_same_on_any_number_of_cores(cores: int, tmp_path: Path) -> None:
    made = compile_functions(functions(2 * GROUP + 1), tvm_target(host()))
    assert len(made) == 3
    files = [tmp_path / f"{i}.o" for i in range(len(made))]
    for module, file in zip(made, files, strict=True):
        assert module.kind == "static_library"  # machine code: nothing is left to be generated
        module.write_to_file(str(file))
    _codes.append([file.read_bytes() for file in files])
    assert all(code.startswith(b"\x7fELF") for code in _codes[-1])
    assert _codes[-1] == _codes[0]


class Many(nn.Module):
    """More kernels than a module holds, no two alike, with more than one thread."""

    def __init__(self) -> None:
        super().__init__()
        widths = range(4, 4 + GROUP + 2)
        self.layers = nn.ModuleList(nn.Conv2d(n, n + 1, 1) for n in widths)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


def test_a_network_of_several_modules_runs_and_is_exported(tmp_path: Path) -> None:
    program = static(Many(), image(1, 4, 20, 20))
    lowered = check_network(program, threads=2)
    assert len({call.workload for call in lowered.calls}) > GROUP + 1
    x = program.inputs[0].numpy()
    tvm = load_tvm()
    library = tvm.runtime.load_module(str(lowered.export(tmp_path / "model.so")))
    result = tvm.runtime.vm.VirtualMachine(library, tvm.cpu())["main"](tvm.runtime.tensor(x))
    assert np.array_equal(result.numpy(), lowered.run(x)[0])


def test_inputs_are_checked_although_kernels_check_nothing() -> None:
    lowered = lower(static(nn.ReLU(), image(1, 4, 20, 20)), host(), 1)
    assert (lowered.run(np.ones((1, 4, 20, 20), np.float32))[0] == 1).all()
    with pytest.raises(RuntimeError, match="shape"):
        lowered.run(np.ones((1, 4, 19, 20), np.float32))
    with pytest.raises(ValueError, match="float32"):
        lowered.run(np.ones((1, 4, 20, 20), np.float64))


def test_what_fails_in_another_thread_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> list[tuple[str, ...]]:
        return [("no such kernel",)]

    monkeypatch.setattr("hwprune.lower.codegen.groups", fail)
    with pytest.raises(LoweringError, match="cannot compile the network"):
        lower(static(Many(), image(1, 4, 20, 20)), host(), 1)
