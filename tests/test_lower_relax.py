from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from examples.models import ALL_NAMES, build, example_input
from hwprune.capture import capture, specialize
from hwprune.errors import LoweringError
from hwprune.lower import lower
from hwprune.tvm_runtime import load_tvm
from tests.lower_helpers import check_network, host, image, static

FAST = ("mlp", "rnet", "onet")


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.Conv2d(20, 20, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(20, 20, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(20, 5),
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_exported_library_runs_in_a_virtual_machine(tmp_path: Path, threads: int) -> None:
    program = static(small(), image(1, 3, 10, 10))
    lowered = check_network(program, threads)
    x = program.inputs[0].numpy()
    expected = lowered.run(x)[0]
    file = lowered.export(tmp_path / "model.so")
    tvm = load_tvm()
    machine = tvm.runtime.vm.VirtualMachine(tvm.runtime.load_module(str(file)), tvm.cpu())
    result = machine["main"](tvm.runtime.tensor(x))
    assert np.array_equal(result.numpy(), expected)


def test_identical_workloads_share_a_function() -> None:
    program = static(small(), image(1, 3, 10, 10))
    lowered = lower(program, host(), 1)
    convolutions = [c.workload for c in lowered.calls if c.workload.op == "conv2d"]
    assert len(convolutions) == 3
    assert len(set(convolutions)) == 2
    functions = [f for f in lowered._symbols.values() if "conv2d" in f]
    assert len(functions) == 2


def test_profile_names_every_call() -> None:
    program = static(small(), image(1, 3, 32, 32))
    lowered = lower(program, host(), 1)
    x = program.inputs[0].numpy()
    profile = lowered.profile([x], repeats=5)
    assert list(profile) == [c.name for c in lowered.calls]
    assert all(us > 0 for us in profile.values())
    assert set(lowered.rules) == set(profile)
    assert all(reason for _, reason in lowered.rules.values())
    assert len(lowered.latencies_us([x], 4)) == 4


def test_results_of_two_runs_do_not_share_memory() -> None:
    program = static(small(), image(1, 3, 10, 10))
    lowered = lower(program, host(), 1)
    x = program.inputs[0].numpy()
    first = lowered.run(x)[0]
    kept = first.copy()
    lowered.run(x * 3)
    assert np.array_equal(first, kept)


def test_double_precision_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU()).double()
    with pytest.raises(LoweringError, match=r"aten\.linear"):
        lower(static(model, image(2, 6).double()), host(), 1)


def models() -> list[object]:
    return [
        pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in ALL_NAMES
    ]


@pytest.mark.parametrize("name", models())
def test_networks_agree_with_torch(name: str) -> None:
    model = build_or_skip(name)
    threads = 1 + ALL_NAMES.index(name) % 2
    program = specialize(capture(model, (example_input(name),), name=name))
    lowered = check_network(program, threads, tolerance=1e-4)
    heavy = {c.name for c in lowered.calls if c.workload.op in ("conv2d", "linear", "concat")}
    assert not [n for n in heavy if lowered.rules[n][0] == "fallback"]


def build_or_skip(name: str) -> nn.Module:
    try:
        return build(name)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def test_batches() -> None:
    torch.manual_seed(0)
    check_network(static(small(), image(3, 3, 10, 10)), threads=2)
