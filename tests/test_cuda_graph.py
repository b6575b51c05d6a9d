"""CUDA graphs: all launches but the first and the last are one, and none is of a single launch."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from hwprune.capture import capture, specialize
from hwprune.dtype import in_dtype
from hwprune.lower import lower
from hwprune.target import load_target

CAPTURED = "vm.builtin.cuda_graph.run_or_capture"


def machine_code(net: nn.Module, *inputs: Tensor) -> dict[str, list[str]]:
    """The calls of every function of the virtual machine, in order."""
    target = in_dtype(load_target("nvidia-h200"), "float16")
    text = lower(specialize(capture(net.eval(), inputs)), target, 1).executable.as_text()
    functions = {}
    for part in re.split(r"^@", text, flags=re.MULTILINE)[1:]:
        name = part.partition(":")[0]
        functions[name] = re.findall(r"^  call +(\S+).* dst: (\S+)", part, flags=re.MULTILINE)
    return {n: [f"{call} {to}" for call, to in calls] for n, calls in functions.items() if calls}


def launches(calls: list[str]) -> list[str]:
    return [call for call in calls if call.startswith("k")]


@pytest.mark.slow
def test_all_launches_between_the_ends_are_one_graph() -> None:
    layers = [layer for _ in range(5) for layer in (nn.Conv2d(8, 8, 3), nn.ReLU())]
    found = machine_code(nn.Sequential(*layers), torch.randn(2, 8, 16, 16))
    (graph,) = (name for name in found if "capture" in name)
    assert sum(call.startswith(CAPTURED) for call in found["main"]) == 1
    outside, inside = launches(found["main"]), launches(found[graph])
    assert len(outside) <= 3  # the first, the last, and the copy out of the layout of channels last
    assert len(inside) >= 3


@pytest.mark.slow
def test_a_single_launch_is_no_graph() -> None:
    """TVM's machine fails on the result of such a graph, which is none."""
    net = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 24), nn.Linear(24, 8))
    found = machine_code(net, torch.randn(4, 16))
    assert not any("capture" in name for name in found)
    assert not any(call.startswith(CAPTURED) for call in found["main"])
    assert len(launches(found["main"])) == 3
