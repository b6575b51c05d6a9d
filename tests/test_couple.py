"""Coupling on whole networks: sizes follow from groups, names hold for the specialised program."""

import time

import numpy as np
import pytest
import torch
from graph_helpers import MODELS, model_and_input, random_plan

from hwprune.capture import capture, specialize
from hwprune.couple import couple


@pytest.fixture(scope="module")
def captured():
    model, x = model_and_input("resnet18")
    return capture(model, (x,))


@pytest.mark.parametrize("name", MODELS)
def test_every_index_belongs_to_one_group_or_stays(name):
    model, x = model_and_input(name)
    program = specialize(capture(model, (x,)))
    start = time.process_time()
    coupling = couple(program)
    assert time.process_time() - start < 1.0
    assert coupling.groups
    assert len({g.name for g in coupling.groups}) == len(coupling.groups)
    owned = {}
    for group in coupling.groups:
        for site, index in group.index.items():
            assert index.shape[0] == group.width
            assert index.dtype == np.int64
            taken = owned.setdefault(site, set())
            assert len(set(index.ravel())) == index.size
            assert not taken & set(index.ravel())
            taken |= set(index.ravel())
            extent = dict(coupling.parameter_extents(site.parameter)[site.dim].terms)
            assert extent[group.name] == index.shape[1]
    full = {g.name: g.width for g in coupling.groups}
    for node in program.module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and node.op != "output":
            sizes = tuple(coupling.extent(node.name, d).at(full) for d in range(value.ndim))
            assert sizes == tuple(value.shape), node


def test_same_answer_for_the_specialised_program(captured):
    fixed = specialize(captured)
    first, second = couple(captured), couple(fixed)
    assert [g.name for g in first.groups] == [g.name for g in second.groups]
    assert first.frozen == second.frozen
    assert first.shapes == second.shapes
    for node in fixed.module.graph.nodes:
        for dim in range(len(first.shapes.get(node.name, ()))):
            assert first.extent(node.name, dim) == second.extent(node.name, dim)


def test_resnet18_groups_and_reasons(captured):
    coupling = couple(captured)
    widths = {g.name: g.width for g in coupling.groups}
    assert widths["conv1"] == 64
    assert widths["layer1.0.conv1"] == 64
    assert widths["layer4.0.conv2"] == 512
    assert len(widths) == 12
    frozen = {f.name: f for f in coupling.frozen}
    assert frozen["fc"].width == 1000
    assert frozen["fc"].reason == "is an output of the model"
    assert "resnet.py" in frozen["conv1"].source
    assert coupling.extent("conv2d", 1).terms == (("conv1", 1),)
    assert coupling.extent("conv2d", 2).terms == ()
    assert coupling.extent("flatten", -1).at({**widths, "layer4.0.conv2": 7}) == 7


def test_unit_masks_count_like_extents(captured):
    coupling = couple(captured)
    plan = random_plan(captured, coupling, 0.3)
    mask = coupling.unit_mask(plan.kept)
    for name, shape in coupling.shapes.items():
        for dim, size in enumerate(shape):
            kept = coupling.kept(name, dim, mask)
            count = size if kept is None else int(kept.sum())
            assert count == coupling.extent(name, dim).at(plan.widths())
