"""Recurrent layers: a channel of the state goes in every gate, layer and direction."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from graph_helpers import prune
from torch import Tensor, nn

from hwprune.inplace import apply_in_place

WIDTH, STATE = 10, 8
X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


class Tagger(nn.Module):
    """A layer before a recurrent one, two after it; its last states are used or not."""

    def __init__(self, kind: type[nn.RNNBase], *, start: str = "", **options: Any) -> None:
        super().__init__()
        self.start = start
        self.before = nn.Linear(6, WIDTH)
        self.recurrent = kind(WIDTH, STATE, batch_first=True, **options)
        outputs = options.get("proj_size", STATE) * (2 if options.get("bidirectional") else 1)
        self.middle, self.after = nn.Linear(outputs, 12), nn.Linear(12, 3)
        self.learned = nn.Parameter(torch.randn(1, 1, STATE))

    def forward(self, x: Tensor) -> Tensor:
        given = self.before(x)
        if not self.start:
            states, last = self.recurrent(given)
            last = last[0] if isinstance(last, tuple) else last
            if last.shape[-1] == states.shape[-1]:
                states = states * last[-1].unsqueeze(1)
        else:
            state = self.learned.expand(1, len(x), -1)
            states, _ = self.recurrent(given, state if self.start == "learned" else state.exp())
        return self.after(torch.relu(self.middle(states)))


KINDS = {
    "lstm": (nn.LSTM, {}),
    "lstm_of_two_layers": (nn.LSTM, {"num_layers": 2}),
    "gru_both_ways": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "gru_from_a_learned_state": (nn.GRU, {"start": "learned"}),
    "rnn_without_biases": (nn.RNN, {"bias": False, "nonlinearity": "relu"}),
}


@pytest.mark.parametrize("name", KINDS)
def test_channels_of_the_state_are_units(name: str) -> None:
    kind, options = KINDS[name]
    torch.manual_seed(0)
    model = Tagger(kind, **options).eval()
    dense, coupling, _, smaller, certificate = prune(model, (X,))
    certificate.check()
    assert certificate.gradient_rel_error is not None
    widths = {g.name: g.width for g in coupling.groups}
    state = "learned" if model.start else "recurrent"
    assert widths == {"before": WIDTH, state: STATE, "middle": 12}
    small = apply_in_place(copy.deepcopy(model), dense, smaller)
    assert (small.recurrent.input_size, small.recurrent.hidden_size) == (WIDTH // 2, STATE // 2)
    torch.testing.assert_close(small(X), smaller.module(X))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"proj_size": 4}, "aten.lstm.input: the state is projected"),
        ({"start": "exp"}, "aten.gru.input: the initial state may be nonzero in silenced channels"),
    ],
)
def test_what_cannot_be_followed_stays_and_says_why(options: dict[str, Any], reason: str) -> None:
    torch.manual_seed(0)
    model = Tagger(nn.LSTM if "proj_size" in options else nn.GRU, **options).eval()
    dense, coupling, _, smaller, certificate = prune(model, (X,))
    certificate.check()
    assert [g.name for g in coupling.groups] == ["middle"]
    assert reason in {f.reason for f in coupling.frozen if f.name == "recurrent"}
    small = apply_in_place(copy.deepcopy(model), dense, smaller)
    torch.testing.assert_close(small(X), smaller.module(X))
