"""Rewrite: `Program` + `Coupling` + `Plan` -> the smaller dense `Program`.

Parameters are sliced, and every integer of the graph that depends on a channel count is
derived anew from the labels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.branches import remove_branches
from hwprune.coupling import Coupling
from hwprune.plan import Plan
from hwprune.program import (
    Program,
    ProgramModule,
    build_program,
    carry_ties,
    copy_graph,
    fingerprint,
    get_tensor,
    propagate,
)
from hwprune.rules.resize import Resizing, resize


def kept_indices(
    coupling: Coupling, plan: Plan, program: Program
) -> dict[str, dict[int, np.ndarray]]:
    """For every parameter and buffer that a group reaches: dimension -> kept indices (int64).

    A tied parameter is listed under each of its names, one that only removed branches read not
    at all.
    """
    mask = coupling.unit_mask(plan.kept)
    graph, removed = program.module.graph, coupling.removed(plan.kept)
    if removed:
        graph = copy_graph(program)
        remove_branches(graph, removed)
        graph.eliminate_dead_code()
    result: dict[str, dict[int, np.ndarray]] = {}
    for node in graph.nodes:
        name = str(node.target)
        if node.op != "get_attr" or name in result:
            continue
        ndim = len(coupling.shapes.get(node.name, ()))
        found = {d: coupling.parameter_kept(name, d, mask) for d in range(ndim)}
        kept = {d: np.flatnonzero(k) for d, k in found.items() if k is not None}
        if kept:
            result[name] = kept
    listed = list(program.module.named_parameters(remove_duplicate=False))
    tied = {id(tensor): result[name] for name, tensor in listed if name in result}
    return result | {name: tied[id(tensor)] for name, tensor in listed if id(tensor) in tied}


def rewrite(program: Program, coupling: Coupling, plan: Plan) -> Program:
    """The program with only the planned units; shares no parameter with the original.

    Raises PlanError where the plan does not fit the program. The original is left as it was.
    """
    plan.check(coupling, fingerprint(program))
    graph = copy_graph(program)
    removed = coupling.removed(plan.kept)
    remove_branches(graph, removed)
    module = ProgramModule(program.module, graph, class_name="Program")
    sizes = Resizing(module, coupling, coupling.unit_mask(plan.kept))
    for node in list(graph.nodes):
        resize(sizes, node)
    slice_parameters(module, kept_indices(coupling, plan, program))
    graph.eliminate_dead_code()
    graph.lint()
    module.delete_all_unused_submodules()
    carry_ties(program.module, module)
    if removed or not sizes.mask.all():
        propagate(module, program.inputs)
    return build_program(module, program.inputs, program.name, program.dynamic_batch)


def slice_parameters(module: nn.Module, kept: Mapping[str, Mapping[int, np.ndarray]]) -> None:
    """Replace every parameter and buffer by a copy, cut to `kept`; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    buffers = [name for name, _ in module.named_buffers(remove_duplicate=False)]
    for name in [*names, *buffers]:
        tensor = get_tensor(module, name)
        if id(tensor) not in made:
            made[id(tensor)] = _cut(tensor, kept.get(name, {}))
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, made[id(tensor)])


def _cut(tensor: Tensor, kept: Mapping[int, np.ndarray]) -> Tensor:
    """A copy with the kept indices of each dimension."""
    result = tensor.detach().clone()
    for dim, indices in kept.items():
        result = result.index_select(dim, torch.from_numpy(indices).to(result.device))
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(result, requires_grad=tensor.requires_grad)
    return result
