"""Sizes from symbols: the same values as a run on fake tensors; none where they are unknown."""

from dataclasses import replace

import pytest
import torch
from graph_helpers import model_and_input, prune
from test_attention import SPELLINGS, TOKENS
from torch import Tensor, nn

from hwprune.capture import capture, specialize
from hwprune.fakes import run_fake
from hwprune.program import copy_graph, get_tensor
from hwprune.symbols import Unknown, concrete_values


def attributes(program, graph):
    read = [n for n in graph.nodes if n.op == "get_attr"]
    return {n: get_tensor(program.module, str(n.target)) for n in read}


def looks(value):
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.device
    return [looks(v) for v in value] if isinstance(value, list | tuple) else value


def compare(program):
    graph = copy_graph(program)
    held = attributes(program, graph)
    found = concrete_values(graph, held, program.inputs)
    wanted = run_fake(graph, held, program.inputs)
    assert found.keys() == wanted.keys()
    assert sum(isinstance(v, int) for v in found.values()) > 0 or not program.dynamic_batch
    for node, value in wanted.items():
        if "batch_norm" not in str(node.target):  # run_fake gives its operand back
            assert looks(found[node]) == looks(value), node


def test_same_as_a_run_on_fake_tensors():
    for name in ("written", "batched", "fused_reshape_unbind"):
        compare(capture(SPELLINGS[name].eval(), (torch.randn(1, TOKENS, 10),)))
    model, x = model_and_input("shufflenet_v2_x1_0")
    program = capture(model, (x,))
    assert x.shape[0] == 1
    compare(program)
    *_, smaller, _ = prune(SPELLINGS["grouped"].eval(), (torch.randn(3, TOKENS, 10),))
    compare(smaller)


def test_what_is_not_known_is_run():
    x = torch.randn(2, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()
    program = capture(net, (x,))
    program.module.double()  # no longer what was captured
    graph = copy_graph(program)
    with pytest.raises(Unknown):
        concrete_values(graph, attributes(program, graph), program.inputs)
    program = replace(program, inputs=(x.double(),))
    values = {
        n.name: n.meta["val"] for n in specialize(program).module.graph.nodes if "val" in n.meta
    }
    assert values["linear"].dtype is torch.float64
    assert tuple(values["linear"].shape) == (2, 2)
