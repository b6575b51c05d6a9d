"""Which ATen calls may join the epilogue of the kernel that makes their input.

In: an FX node and the running value it reads. Out: an `Absorbed` step with its operands, or None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from hwprune.lower.affine import channel_affine
from hwprune.lower.functional import argument, packet
from hwprune.lower.spec import Step

_PLAIN_UNARY = {
    "aten.relu": "relu",
    "aten.silu": "silu",
    "aten.sigmoid": "sigmoid",
    "aten.hardswish": "hardswish",
    "aten.hardsigmoid": "hardsigmoid",
    "aten.tanh": "tanh",
}
_BINARY = {"aten.add": "add", "aten.sub": "sub", "aten.mul": "mul"}
_GATES = {"sigmoid": "silu", "hardsigmoid": "hardswish"}
_LARGE = 3.0e38  # stands for an absent bound of a clamp


@dataclass(frozen=True)
class Absorbed:
    """One epilogue step, the graph nodes it computes (the last is its result) and its operands."""

    step: Step
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...] = ()
    params: tuple[fx.Node, ...] = ()

    @property
    def result(self) -> fx.Node:
        """The node whose value the running value is after this step."""
        return self.nodes[-1]


def is_float(node: Any) -> bool:
    """Whether a node is a float32 tensor."""
    found = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(found, Tensor) and found.dtype == torch.float32


def next_step(current: fx.Node) -> Absorbed | None:
    """The step that is the only reader of a value, if there is one."""
    users = list(current.users)
    if len(users) == 2:
        return _gate(current, users)
    if len(users) != 1:
        return None
    return match(users[0], current)


def match(user: fx.Node, current: fx.Node) -> Absorbed | None:
    """`user` as an epilogue step on the running value `current`."""
    if not is_float(user) or user.meta["val"].shape != current.meta["val"].shape:
        return None
    unary = unary_step(user)
    if unary is not None:
        return Absorbed(unary, (user,)) if user.args[0] is current else None
    if user.target is channel_affine and user.args[0] is current:
        return Absorbed(Step("affine"), (user,), (), (user.args[1], user.args[2]))
    if packet(user) == "aten.prelu" and user.args[0] is current:
        slope = user.args[1]
        fits = slope.op == "get_attr" and current.meta["val"].ndim in (2, 4)
        return Absorbed(Step("prelu"), (user,), (), (slope,)) if fits else None
    return _binary(user, current)


def _gate(current: fx.Node, users: list[fx.Node]) -> Absorbed | None:
    """x * sigmoid(x) and x * hardsigmoid(x)."""
    for gate, product in (users, users[::-1]):
        step = unary_step(gate)
        if step is None or step.op not in _GATES or list(gate.users) != [product]:
            continue
        if packet(product) == "aten.mul" and {product.args[0], product.args[1]} == {current, gate}:
            return Absorbed(Step(_GATES[step.op]), (gate, product))
    return None


def _binary(user: fx.Node, current: fx.Node) -> Absorbed | None:
    op = _BINARY.get(packet(user))
    if op is None or len(user.args) < 2 or user.kwargs.get("alpha", 1) != 1 or len(user.args) > 2:
        return None
    left, right = user.args[0], user.args[1]
    other = right if left is current else left
    if not is_float(other) or other is current or (op == "sub" and left is not current):
        return None
    return Absorbed(Step(op), (user,), (other,))


def unary_step(node: fx.Node) -> Step | None:
    """The step of an activation without operands."""
    name = packet(node)
    if name in _PLAIN_UNARY:
        return Step(_PLAIN_UNARY[name])
    if name in ("aten.hardtanh", "aten.relu6", "aten.clamp", "aten.clamp_min", "aten.clamp_max"):
        return _clamp(node, name)
    if name == "aten.leaky_relu":
        return Step("leaky_relu", (float(argument(node, 1, "negative_slope", 0.01)),))
    if name == "aten.gelu":
        kind = argument(node, 1, "approximate", "none")
        return Step("gelu" if kind == "none" else "gelu_tanh")
    if name == "aten.elu":
        scales = (argument(node, 2, "scale", 1), argument(node, 3, "input_scale", 1))
        plain = all(s == 1 for s in scales)
        return Step("elu", (float(argument(node, 1, "alpha", 1.0)),)) if plain else None
    return None


def _clamp(node: fx.Node, name: str) -> Step | None:
    low: Any = None
    high: Any = None
    if name == "aten.hardtanh":
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
    elif name == "aten.relu6":
        low, high = 0.0, 6.0
    elif name == "aten.clamp_max":
        high = argument(node, 1, "max")
    elif name == "aten.clamp_min":
        low = argument(node, 1, "min")
    else:
        low, high = argument(node, 1, "min"), argument(node, 2, "max")
    if any(isinstance(bound, fx.Node) for bound in (low, high)):
        return None
    if low == 0 and high is None:
        return Step("relu")
    bounds = (-_LARGE if low is None else float(low), _LARGE if high is None else float(high))
    return Step("clamp", bounds)
