"""What is zero in silenced channels: only over such may a product of activations lose channels."""

import pytest
import torch
from graph_helpers import prune
from torch import nn

TOKENS, WIDTH = 5, 8


class Similar(nn.Module):
    """Products of two branches summed over their channels; each a function of a layer's output."""

    def __init__(self, first, second):
        super().__init__()
        self.a, self.b = nn.Linear(6, WIDTH), nn.Linear(6, WIDTH)
        self.first, self.second = first, second
        self.scale = nn.Parameter(torch.full((1,), 0.7))
        self.each, self.rows = (nn.Parameter(torch.rand(n)) for n in (WIDTH, TOKENS))
        self.mix, self.plain = nn.Linear(TOKENS, TOKENS), nn.Linear(TOKENS, TOKENS, bias=False)
        self.place = nn.Conv1d(TOKENS, TOKENS, 1)
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(TOKENS, 3)

    def forward(self, x):
        a, b = self.first(self, self.a(x)), self.second(self, self.b(x))
        return self.out(a @ b.transpose(1, 2))


def gate(net, x):
    return x.sigmoid()


ZERO = {
    "itself": lambda net, x: x,
    "scaled": lambda net, x: x * net.scale,
    "divided": lambda net, x: x / 3.0,
    "scaled_each": lambda net, x: x.sigmoid() * net.each,
    "scaled_rows": lambda net, x: x * net.rows[:, None],
    "shifted_each": lambda net, x: x + net.each,
    "added": lambda net, x: x + x.relu(),
    "normalised": lambda net, x: net.norm(x),
    "mixed": lambda net, x: net.plain(x.transpose(1, 2)).transpose(1, 2),
}
NONZERO = {
    "gate": gate,
    "scaled_gate": lambda net, x: x.sigmoid() * net.scale,
    "gate_by_rows": lambda net, x: x.sigmoid() * net.rows[:, None],
    "shifted": lambda net, x: x + net.scale,
    "one_more": lambda net, x: x + 1.0,
    "less_of_gate": lambda net, x: x - x.sigmoid(),
    "inverse": lambda net, x: net.scale / (1.0 + x.square()),
    "mixed_and_shifted": lambda net, x: net.mix(x.transpose(1, 2)).transpose(1, 2),
    "placed": lambda net, x: net.place(x),
}


@pytest.mark.parametrize("name", ZERO)
def test_a_channel_that_vanishes_can_go(name):
    _, coupling, *_, certificate = prune(Similar(ZERO[name], gate), (torch.randn(2, TOKENS, 6),))
    certificate.check()
    assert [g.width for g in coupling.groups] == [WIDTH]


@pytest.mark.parametrize("name", NONZERO)
def test_a_channel_that_may_not_vanish_stays(name):
    _, coupling, *_, certificate = prune(Similar(NONZERO[name], gate), (torch.randn(2, TOKENS, 6),))
    certificate.check()
    assert coupling.groups == ()
    assert any("may be nonzero in this product" in f.reason for f in coupling.frozen)
