"""Kernels that are only an epilogue: which calls start one, and which values a layer could take.

In: FX nodes of a folded graph. Out: a `Root` and the first `Absorbed` step, or None.
"""

from __future__ import annotations

from torch import fx

from hwprune.lower.affine import channel_affine
from hwprune.lower.epilogue import Absorbed, is_float, match, unary_step
from hwprune.lower.functional import packet
from hwprune.lower.match import find_root
from hwprune.lower.root import Root, shape
from hwprune.lower.spec import Step

_OPERATORS = frozenset(("aten.add", "aten.sub", "aten.mul", "aten.prelu"))


def elementwise_root(node: fx.Node) -> Root | None:
    """An elementwise kernel that starts with this node, on the node's main operand."""
    main = _main_operand(node)
    if main is None or first_step(node) is None:
        return None
    return Root("elementwise", (main,))


def first_step(node: fx.Node) -> Absorbed | None:
    """The node as the first step of an elementwise kernel."""
    if not is_float(node) or node.op != "call_function":
        return None
    known = unary_step(node) is not None or node.target is channel_affine
    if not known and packet(node) not in _OPERATORS:
        return None
    main = _main_operand(node)
    if main is None or main.op == "get_attr":
        return None
    if packet(node) in ("aten.add", "aten.mul") and list(node.args) == [main, main]:
        return Absorbed(Step(packet(node).removeprefix("aten.")), (node,), (main,))
    return match(node, main)


def _main_operand(node: fx.Node) -> fx.Node | None:
    """The operand that has the result's shape (the gate of a product is the other one)."""
    for candidate in node.args[:2]:
        if not isinstance(candidate, fx.Node) or not is_float(candidate):
            continue
        if shape(candidate) == shape(node):
            return candidate
    return None


def ends_a_layer(node: fx.Node) -> bool:
    """Whether a value is the result of a layer that could take its only reader as a step."""
    current = node
    while len(current.users) == 1:
        root = find_root(current)
        if root is not None:
            return root.op in ("conv2d", "linear")
        if unary_step(current) is None or not isinstance(current.args[0], fx.Node):
            return False
        current = current.args[0]
    return False
