"""The arena: values that live at the same time never overlap, and the plan is near the least."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hwprune.lower import Lowered
from hwprune.lower.arena import ALIGNMENT, Lifetime, place
from tests.lower_helpers import check_network, image, static


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    found = []
    for i in range(draw(st.integers(0, 12))):
        first = draw(st.integers(0, 20))
        last = draw(st.integers(first, 24))
        found.append(Lifetime(f"v{i}", ALIGNMENT * draw(st.integers(0, 9)), first, last))
    return found


@given(lifetimes())
def test_values_that_meet_do_not_overlap(values: list[Lifetime]) -> None:
    offsets = place(values)
    assert set(offsets) == {v.name for v in values}
    assert all(offset % ALIGNMENT == 0 for offset in offsets.values())
    for a, b in combinations(values, 2):
        if a.meets(b):
            apart = offsets[a.name] + a.size <= offsets[b.name]
            assert apart or offsets[b.name] + b.size <= offsets[a.name]


@given(lifetimes())
def test_the_arena_is_between_what_lives_at_once_and_all(
    values: list[Lifetime],
) -> None:
    offsets = place(values)
    size = max((offsets[v.name] + v.size for v in values), default=0)
    alive = [sum(v.size for v in values if v.first <= t <= v.last) for t in range(25)]
    assert max(alive) <= size <= sum(v.size for v in values)


class Net(nn.Module):
    """A residual branch, a value that is also a result, and an operator of the fallback."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 20, 3, padding=1)
        self.b = nn.Conv2d(20, 20, 3, padding=1)
        self.c = nn.Conv2d(20, 7, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.a(x).relu()
        z = self.b(y) + y
        return self.c(z), y, torch.cos(z)


@pytest.fixture(scope="module")
def network() -> Lowered:
    torch.manual_seed(0)
    return check_network(static(Net(), image(1, 3, 9, 9)))


def test_results_outlive_the_next_run(network: Lowered) -> None:
    first = network.run(np.ones((1, 3, 9, 9), np.float32))
    copies = [array.copy() for array in first]
    network.run(np.zeros((1, 3, 9, 9), np.float32))
    assert all(np.array_equal(a, b) for a, b in zip(first, copies, strict=True))


def test_results_and_what_the_fallback_touches_lie_outside(network: Lowered) -> None:
    fallback = {c.output for c in network.calls if network.rules[c.name][0] == "fallback"}
    assert fallback
    assert not fallback & set(network.arena.offsets)
    assert network.arena.least_bytes <= network.arena.size_bytes
    assert network.arena.peak in {call.name for call in network.calls}
