"""Recognise the parts of transformers: layer norm, softmax and attention.

In: an FX node of a folded graph. Out: a `Root`, or None for what only the fallback can do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from hwprune.lower.affine import channel_affine
from hwprune.lower.epilogue import is_float
from hwprune.lower.functional import argument, get_tensor, packet
from hwprune.lower.movement import is_alias, transposition
from hwprune.lower.root import Root, is_parameter, shape


def layer_norm(node: fx.Node) -> Root | None:
    """Over the last axis, with a scale."""
    x, sizes = node.args[0], argument(node, 1, "normalized_shape")
    weight, bias = argument(node, 2, "weight"), argument(node, 3, "bias")
    if len(sizes) != 1 or not is_parameter(weight) or not is_float(x):
        return None
    if bias is not None and not is_parameter(bias):
        return None
    return Root("layer_norm", (x,), {"eps": float(argument(node, 4, "eps", 1e-5))}, weight, bias)


def softmax(node: fx.Node) -> Root | None:
    """Over the last axis."""
    x, axis = node.args[0], int(argument(node, 1, "dim"))
    if not is_float(x) or axis % len(shape(x)) != len(shape(x)) - 1:
        return None
    return Root("softmax", (x,))


def attention(node: fx.Node) -> Root | None:
    """`scaled_dot_product_attention` of as many query heads as key heads."""
    q, k, v = node.args[:3]
    mask = argument(node, 3, "attn_mask")
    causal = bool(argument(node, 5, "is_causal", False))
    scale = argument(node, 6, "scale", node.kwargs.get("scale"))
    operands = (q, k, v) if mask is None else (q, k, v, mask)
    if not all(is_float(n) for n in operands) or argument(node, 4, "dropout_p", 0.0):
        return None
    if len(shape(q)) != 4 or shape(q)[:2] != shape(k)[:2] or shape(k)[:3] != shape(v)[:3]:
        return None
    scale = shape(q)[-1] ** -0.5 if scale is None else float(scale)
    return Root("attention", operands, {"causal": causal, "scale": scale})


def written_attention(node: fx.Node) -> Root | None:
    """softmax(q k^T * scale + masks) v written out, found at the last product."""
    weights, v = node.args[:2]
    if not isinstance(weights, fx.Node) or packet(weights) not in ("aten.softmax", "aten._softmax"):
        return None
    if len(weights.users) != 1 or softmax(weights) is None or not is_float(v):
        return None
    scores = _scores(weights.args[0], shape(node)[:2])
    if scores is None or len(shape(node)) != 4 or scores.q is None:
        return None
    q, k = scores.q, scores.k
    if shape(q)[:2] != shape(v)[:2] or shape(k)[:3] != shape(v)[:3]:
        return None
    attrs = {"causal": False, "scale": scores.scale}
    return Root("attention", (q, k, v, *scores.masks), attrs, nodes=(*scores.nodes, weights))


@dataclass(frozen=True)
class _Scores:
    """q k^T * scale + masks, and the graph nodes that compute it."""

    q: fx.Node
    k: fx.Node
    scale: float = 1.0
    masks: tuple[fx.Node, ...] = ()
    nodes: tuple[fx.Node, ...] = ()


def _scores(node: Any, heads: tuple[int, ...]) -> _Scores | None:
    """What a softmax reads as scores of (batch, heads); None if it is anything else."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or not is_float(node):
        return None
    name, found = packet(node), None
    if name == "aten.matmul" and len(shape(node)) == 4:
        found = _product(node)
    elif is_alias(node) and _stripped(node) == _stripped(node.args[0]):
        found = _scores(node.args[0], heads)
    elif name == "aten.add" and len(node.args) == 2 and not node.kwargs:
        found = _masked(node, heads)
    elif (factor := uniform(node)) is not None:
        found = _scores(node.args[0], heads)
        if found is not None and not found.masks:
            found = replace(found, scale=found.scale * factor)
        else:
            found = None
    return None if found is None else replace(found, nodes=(*found.nodes, node))


def _masked(node: fx.Node, heads: tuple[int, ...]) -> _Scores | None:
    for scores, mask in (node.args, node.args[::-1]):
        found = _scores(scores, heads)
        if found is None or not is_float(mask):
            continue
        sizes = _stripped(mask)
        wanted = (*heads, *shape(node)[-2:])
        fits = all(m in (1, w) for m, w in zip(sizes[::-1], wanted[::-1], strict=False))
        if fits and len(sizes) <= 4 and sizes[-1:] == wanted[-1:]:
            return replace(found, masks=(*found.masks, mask))
    return None


def _product(node: fx.Node) -> _Scores | None:
    """q k^T, with numbers that multiply q or k."""
    q, scale = _unscaled(node.args[0])
    swapped, more = _unscaled(node.args[1])
    if q is None or swapped is None or transposition(swapped) != (0, 1, 3, 2):
        return None
    k, last = _unscaled(swapped.args[0])
    if k is None or shape(q)[:2] != shape(k)[:2] or len(shape(k)) != 4:
        return None
    return _Scores(q, k, scale * more * last)


def _unscaled(node: Any) -> tuple[fx.Node | None, float]:
    """What a number multiplies, and the number."""
    if not isinstance(node, fx.Node) or not is_float(node) or node.op == "get_attr":
        return None, 1.0
    factor, source = uniform(node), node.args[0]
    if factor is None or not isinstance(source, fx.Node):
        return node, 1.0
    return source, factor


def uniform(node: fx.Node) -> float | None:
    """The number that multiplies a value, where that is all that a call does."""
    if node.target is not channel_affine:
        return None
    module = node.graph.owning_module
    scale, shift = (get_tensor(module, str(c.target)) for c in node.args[1:3])
    if shift.any() or not (scale == scale[0]).all():
        return None
    return float(scale[0])


def _stripped(node: fx.Node) -> tuple[int, ...]:
    """The shape without leading dimensions of size 1."""
    sizes = list(shape(node))
    while len(sizes) > 1 and sizes[0] == 1:
        sizes.pop(0)
    return tuple(sizes)


FINDERS = {
    "aten.layer_norm": layer_norm,
    "aten.softmax": softmax,
    "aten._softmax": softmax,
    "aten.scaled_dot_product_attention": attention,
}
