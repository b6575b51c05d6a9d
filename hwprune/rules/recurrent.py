"""Rules of recurrent layers (LSTM, GRU, RNN): a unit is a channel of the state, in every gate.

A channel whose rows of weights and biases are zero has open gates by half and nothing to let
through: it stays zero in every step where its initial state is zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from hwprune.rules.contraction import is_weight
from hwprune.rules.engine import (
    Factors,
    Outputs,
    Tracer,
    UnsupportedForm,
    along,
    operator_names,
    rule,
    shape_of,
)
from hwprune.rules.product import NO_CHANNELS
from hwprune.rules.silence import vanishes

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_STATE = "the state of every layer and direction has the same size"
_ZEROS = frozenset(["zeros", "new_zeros", "zeros_like"])


@rule("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input")
def recurrent(tracer: Tracer, node: fx.Node) -> Outputs:
    """`op(x, state, weights, has_biases, layers, dropout, train, bidirectional, batch_first)`.

    The states of all layers and directions lie in one tensor, so their channels are united.
    """
    x, given, weights = node.args[:3]
    states: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    directions = 2 if node.args[7] else 1
    chunks = _per_direction(node, list(weights), directions)  # type: ignore[arg-type]
    hidden = tracer.vector(tracer.of(chunks[0][1]), 1)
    for state in states:
        if operator_names(state)[1] not in _ZEROS and not vanishes(tracer, state):
            raise UnsupportedForm("the initial state may be nonzero in silenced channels")
        tracer.unite_axes(_channels(tracer, node, state), hidden, node, _STATE)
    feed = _channels(tracer, node, x)
    for layer in range(0, len(chunks), directions):
        for chunk in chunks[layer : layer + directions]:
            _direction(tracer, node, chunk, feed, hidden)
        feed = None if hidden is None else np.tile(hidden, directions)
    outputs = [feed, *(hidden for _ in states)]
    return Outputs(() if v is None else (along(v, 2, 3),) for v in outputs)


def _per_direction(node: fx.Node, weights: list[Any], directions: int) -> list[list[Any]]:
    """The weights of each direction of each layer: of the input, of the state, biases."""
    each = 4 if node.args[3] else 2
    if len(weights) != int(node.args[4]) * directions * each:  # type: ignore[arg-type]
        raise UnsupportedForm("the state is projected")
    if len(shape_of(node.args[0])) != 3 or not all(is_weight(w) for w in weights):
        raise UnsupportedForm("the input has no batch, or the weights are computed")
    return [weights[i : i + each] for i in range(0, len(weights), each)]


def _channels(tracer: Tracer, node: fx.Node, value: Any) -> np.ndarray | None:
    """The labels along the channels of (time or layers, batch, channels), and no others."""
    factors: Factors = tracer.of(value)
    for dim in (0, 1):
        factors = tracer.fix_dim(factors, dim, node, "steps, layers and batch keep their length")
    return tracer.vector(factors, 2)


def _direction(
    tracer: Tracer,
    node: fx.Node,
    weights: list[Any],
    feed: np.ndarray | None,
    hidden: np.ndarray | None,
) -> None:
    """Every gate has a row for each channel of the state."""
    columns = tracer.vector(tracer.of(weights[0]), 1), tracer.vector(tracer.of(weights[1]), 1)
    tracer.unite_axes(columns[0], feed, node, NO_CHANNELS)
    tracer.unite_axes(columns[1], hidden, node, _STATE)
    gates = _GATES[operator_names(node)[1]]
    for weight in weights:
        rows = tracer.vector(tracer.of(weight), 0)
        tracer.unite_axes(rows, None if hidden is None else np.tile(hidden, gates), node, _STATE)
