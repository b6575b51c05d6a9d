"""Recognise the parts of transformers: layer norm, softmax and attention.

In: an FX node of a folded graph. Out: a `Root`, or None for what only the fallback can do.
"""

from __future__ import annotations

from torch import fx

from hwprune.lower.epilogue import is_float
from hwprune.lower.functional import argument
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


FINDERS = {
    "aten.layer_norm": layer_norm,
    "aten.softmax": softmax,
    "aten._softmax": softmax,
    "aten.scaled_dot_product_attention": attention,
}
