"""A user's own module whose branches are gone: they stay in it and compute zeros."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hwprune.capture import Program, capture
from hwprune.couple import couple
from hwprune.coupling import Coupling
from hwprune.errors import ModelError
from hwprune.plan import Plan
from hwprune.program import fingerprint
from hwprune.rewrite import rewrite
from hwprune.silent import apply_plan_to
from tests.test_branches import NETS, network, plan_of


class Constant(nn.Module):
    """A branch that adds one, whatever its parameters are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.f = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.f(x).cos()


def pruned(model: nn.Module, x: Tensor, gone: int | None) -> tuple[Program, Plan, Program]:
    """The program, a plan without its first branches, and what it makes."""
    program = capture(model, (x,))
    coupling = couple(program, branches=True)
    names = [b.name for b in coupling.branches][:gone]
    plan = plan_of(program, coupling, set(names))
    return program, plan, rewrite(program, coupling, plan)


def without(program: Program, coupling: Coupling, name: str) -> Plan:
    """All units but a branch."""
    (branch,) = (b for b in coupling.branches if b.name == name)
    full = Plan.full(coupling, fingerprint(program)).kept
    kept = {**full, name: (), **dict.fromkeys(branch.groups, ())}
    return Plan(fingerprint(program), kept, forms=coupling.forms)


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("gone", [0, 1, None])
@pytest.mark.parametrize("name", [n for n in NETS if n != "encoder"])
def test_a_model_computes_what_the_network_without_branches_does(name, gone) -> None:
    model, x = network(name)
    dense, plan, smaller = pruned(model, x, gone)
    before = size(model)
    apply_plan_to(model, dense, plan, smaller)
    torch.testing.assert_close(model(x), smaller.module(x))
    assert size(smaller.module) <= size(model) < before


def test_attention_that_needs_all_of_its_heads_keeps_them() -> None:
    model, x = network("encoder")
    dense = capture(model, (x,))
    coupling = couple(dense, branches=True)
    plan = without(dense, coupling, "branch:layers.0.norm1")
    smaller = rewrite(dense, coupling, plan)
    apply_plan_to(model, dense, plan, smaller)
    torch.testing.assert_close(model(x), smaller.module(x))


def test_plans_of_two_stages() -> None:
    model, x = network("residual")
    dense, plan, smaller = pruned(model, x, 1)
    coupling = couple(smaller, branches=True)
    second = plan_of(smaller, coupling, {coupling.branches[0].name})
    least = rewrite(smaller, coupling, second)
    apply_plan_to(model, dense, replace(plan, then=second), least)
    torch.testing.assert_close(model(x), least.module(x))


def test_a_branch_that_is_never_silent_is_refused_and_the_model_is_as_it_was() -> None:
    torch.manual_seed(0)
    model, x = Constant().eval(), torch.randn(2, 4)
    dense = capture(model, (x,))
    coupling = couple(dense, branches=True)
    plan = without(dense, coupling, coupling.branches[0].name)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match="adds something even where its parameters are zero"):
        apply_plan_to(model, dense, plan, rewrite(dense, coupling, plan))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
