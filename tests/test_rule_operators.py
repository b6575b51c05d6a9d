"""Every rule against its operator: what is in removed channels must not arrive where labels stay.

All tensors of a call are parameters with channels along every dimension. Half of the units that
the rule leaves free are removed: the first tensor holds random values there, the others zeros. The
rewritten call on the slices must give what the operator gave at the kept positions.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import numpy as np
import pytest
import torch
from operator_cases import NAMES, case
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from hwprune.couple import _apply
from hwprune.coupling import Coupling
from hwprune.grouping import build_coupling
from hwprune.program import propagate
from hwprune.reference import renormalise
from hwprune.rewrite import slice_parameters
from hwprune.rules import Tracer
from hwprune.rules.components import components
from hwprune.rules.engine import UnsupportedForm, varying
from hwprune.rules.probe import arrivals, probe, random_call
from hwprune.rules.resize import Resizing, resize


def call_graph(target: Any, arguments: tuple[Any, ...]) -> fx.GraphModule:
    """A graph of one call whose tensors are parameters and buffers."""
    root, graph = nn.Module(), fx.Graph()

    def node(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        name = f"t{len(graph.nodes)}"
        value = value.clone()
        if value.is_floating_point():
            root.register_parameter(name, nn.Parameter(value.double(), requires_grad=False))
        else:
            root.register_buffer(name, value)
        return graph.get_attr(name)

    call = graph.call_function(target, tree_map(node, arguments))
    made = call
    if target._schema.returns[0].type.kind() == "ListType":
        made = tuple(graph.call_function(operator.getitem, (call, i)) for i in (0, 1))
    elif len(target._schema.returns) > 1:
        made = graph.call_function(operator.getitem, (call, 0))
    graph.output(made)
    module = fx.GraphModule(root, graph)
    propagate(module, ())
    return module


def labelled(module: fx.GraphModule) -> Tracer:
    tracer = Tracer(module)
    for node in module.graph.nodes:
        if node.op == "get_attr":
            tracer.values[node] = tracer.parameter(node)
        elif node.op == "call_function":
            tracer.values[node] = _apply(tracer, node)
    return tracer


def half(coupling: Coupling) -> np.ndarray:
    rng = np.random.default_rng(0)
    kept = {
        g.name: np.sort(rng.permutation(g.width)[: max(1, g.width // 2)]) for g in coupling.groups
    }
    return coupling.unit_mask(kept)


def fill_removed(module: fx.GraphModule, coupling: Coupling, mask: np.ndarray) -> None:
    """Random values in the removed channels of the first tensor, zeros in those of the others."""
    for i, (name, tensor) in enumerate(module.named_parameters()):
        gone = torch.zeros(tensor.shape, dtype=torch.bool)
        for dim in range(tensor.ndim):
            kept = coupling.parameter_kept(name, dim, mask)
            if kept is not None:
                gone.index_fill_(dim, torch.from_numpy(np.flatnonzero(~kept)), True)
        other = torch.rand(tensor.shape, dtype=tensor.dtype) if i == 0 else torch.zeros(())
        tensor.copy_(torch.where(gone, other, tensor))


def results(module: fx.GraphModule) -> list[Tensor]:
    torch.manual_seed(0)
    found = module()
    return list(found) if isinstance(found, tuple | list) else [found]


@pytest.mark.parametrize("name", NAMES)
def test_rule_tells_where_values_arrive(name):
    module = call_graph(*case(name))
    tracer = labelled(module)
    coupling = build_coupling(tracer)
    mask = half(coupling)
    fill_removed(module, coupling, mask)
    smaller = fx.GraphModule(copy.deepcopy(module), copy.deepcopy(module.graph))
    sizes = Resizing(smaller, coupling, mask)
    for node in list(smaller.graph.nodes):
        resize(sizes, node)
    kept = {
        name: {
            d: np.flatnonzero(k)
            for d in range(p.ndim)
            if (k := coupling.parameter_kept(name, d, mask)) is not None
        }
        for name, p in [*module.named_parameters(), *module.named_buffers()]
    }
    slice_parameters(smaller, kept)
    smaller.recompile()
    renormalise(module, coupling, mask)  # statistics are those of the channels that stay
    output = next(n for n in module.graph.nodes if n.op == "output")
    for node, wanted, found in zip(
        output.all_input_nodes, results(module), results(smaller), strict=True
    ):
        for dim in range(wanted.ndim):
            stays = coupling.kept(node.name, dim, mask)
            if stays is not None:
                wanted = wanted.index_select(dim, torch.from_numpy(np.flatnonzero(stays)))
        if "rand" not in name and "empty" not in name:
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12, equal_nan=True)
        assert found.shape == wanted.shape


def followed(module: fx.GraphModule) -> int:
    """Compare labels with arrivals for each operand's dimensions; how many could be compared."""
    tracer = labelled(module)
    call_node = next(n for n in module.graph.nodes if n.op == "call_function")
    labels = tracer.of(call_node)
    frozen = np.concatenate([f.labels for f in tracer.freezes] + [np.zeros(0, np.int64)])
    united = components(tracer.count, tracer.edges)
    call, compared = random_call(module, call_node), 0
    for operand in call.tensors:
        for factor in tracer.of(operand):
            (dim,) = varying(factor)
            try:
                arrived, source = arrivals(call, operand, dim)
            except UnsupportedForm:
                continue  # channels meet there
            wanted = united[factor.ravel()[source]]
            here = [united[f.ravel()] for f in labels if f.shape[arrived] > 1]
            told = any(np.array_equal(f, wanted) for f in here)
            assert told or np.isin(wanted, united[frozen]).all(), (operand, dim)
            compared += told
    return compared


def test_values_reach_exactly_the_places_that_the_labels_say():
    compared = {}
    for name in NAMES:
        target, arguments = case(name)
        if len(target._schema.returns) == 1 and not target._schema.is_mutable:
            try:
                compared[name] = followed(call_graph(target, arguments))
            except UnsupportedForm:
                compared[name] = 0
    assert sum(n > 0 for n in compared.values()) > 120, compared


ATEN = torch.ops.aten
UNKNOWN = {
    "elementwise": (ATEN.special_erfcx.default, (torch.rand(4, 6),), [4, 6]),
    "two operands": (ATEN.logaddexp.default, (torch.rand(4, 6), torch.rand(6)), [4, 6]),
    "moved": (ATEN.rot90.default, (torch.rand(4, 6), 1, [0, 1]), [4, 6]),
    "channels of an image": (
        ATEN.grid_sampler_2d.default,
        (torch.rand(1, 5, 3, 3), torch.rand(1, 2, 2, 2), 0, 0, False),
        [],
    ),
    "along a dimension": (ATEN.logcumsumexp.default, (torch.rand(4, 6), 1), []),
    "a size in the call": (ATEN.as_strided.default, (torch.rand(4, 6), [4, 6], [6, 1]), []),
    "several results": (ATEN.sort.default, (torch.rand(4, 6), 1), []),
}  # fmt: skip


@pytest.mark.parametrize("what", UNKNOWN)
def test_random_values_tell_what_an_unknown_operator_does(what):
    target, arguments, widths = UNKNOWN[what]
    tracer = labelled(call_graph(target, arguments))
    coupling = build_coupling(tracer)
    assert sorted(g.width for g in coupling.groups) == widths
    call_node = next(n for n in tracer.module.graph.nodes if n.op == "call_function")
    if widths:
        assert len(tracer.of(call_node)) == len(widths)
    else:
        assert {f.reason for f in coupling.frozen} == {f"{target}: no rule for this operator"}
        with pytest.raises(UnsupportedForm):
            probe(tracer, call_node)
