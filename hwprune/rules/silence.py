"""Which values are zero in every channel whose parameters are zero: a sum over such loses nothing.

In: a value of a graph that is traced so far. Out: yes, or no where that is not sure.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from hwprune.rules.engine import Tracer, argument, operator_names, shape_of, varying

# Operators whose result is zero where all of their operands are, or the first of them.
_ALL_ZERO = frozenset(
    [
        "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze",
        "permute", "transpose", "t", "numpy_T", "mT", "movedim", "expand", "slice", "select",
        "chunk", "split", "split_with_sizes", "unbind", "cat", "stack", "roll", "clone",
        "contiguous", "detach", "alias", "to", "_to_copy", "dropout", "neg",
        "relu", "gelu", "silu", "tanh", "leaky_relu", "hardswish", "repeat", "repeat_interleave",
        "bmm", "matmul", "square", "sum", "mean",
    ]
)  # fmt: skip
_FIRST_ZERO = frozenset(["constant_pad_nd", "reshape_as", "view_as", "index"])
_WEIGHTED = frozenset(
    ["linear", "mm", "addmm", "embedding", "conv1d", "conv2d", "conv3d", "convolution"]
)
_DEEP = 40


def vanishes(tracer: Tracer, arg: Any, depth: int = 0) -> bool:
    """Whether a value is zero in each channel whose parameters are zero; False if unsure."""
    if not isinstance(arg, fx.Node) or depth > _DEEP:
        return False
    if arg.op != "call_function":
        return arg.op == "get_attr"
    name, depth = operator_names(arg)[1], depth + 1
    if name in _WEIGHTED:
        return _layer(tracer, arg, name, depth)
    if name.endswith("_norm"):
        return _norm(tracer, arg, name, depth)
    if name in ("mul", "div", "add", "sub"):
        return _elementwise(tracer, arg, name, depth)
    if name == "scaled_dot_product_attention":
        return _only(tracer, arg, (0, 1, -3, -1)) and vanishes(tracer, arg.args[2], depth)
    if name in _FIRST_ZERO:
        return vanishes(tracer, arg.args[0], depth)
    known = name in _ALL_ZERO or "getitem" in str(arg.target)
    return known and all(vanishes(tracer, x, depth) for x in arg.all_input_nodes)


def _only(tracer: Tracer, node: fx.Node, dims: tuple[int, ...]) -> bool:
    """Whether all labels of a value vary over these dimensions."""
    ndim = len(shape_of(node))
    allowed = {d % ndim for d in dims if -ndim <= d < ndim}
    return all(set(varying(f)) <= allowed for f in tracer.of(node))


def _layer(tracer: Tracer, node: fx.Node, name: str, depth: int) -> bool:
    """Rows of a weight and of a bias; channels that only pass through meet the bias of others."""
    weight = node.args[1]
    channel = -1 if "conv" not in name else 1 - len(shape_of(weight))
    if _only(tracer, node, (channel,)):
        return True
    biased = name == "addmm" or argument(node, 2, "bias") is not None
    return not biased and vanishes(tracer, node.args[0], depth)


def _norm(tracer: Tracer, node: fx.Node, name: str, depth: int) -> bool:
    """A norm's scale and shift; without a scale, what it centres by statistics of its own."""
    if name in ("layer_norm", "rms_norm", "group_norm"):
        channel = 1 if name == "group_norm" else -1
        return _only(tracer, node, (channel,)) and isinstance(argument(node, 2, "weight"), fx.Node)
    if name == "_weight_norm":
        return vanishes(tracer, node.args[0], depth)
    if name != "batch_norm":
        return False
    x, scale, shift, mean = node.args[:4]
    if shift is not None and not vanishes(tracer, shift, depth):
        return False
    return vanishes(tracer, x if scale is None and mean is None else scale, depth)


def _elementwise(tracer: Tracer, node: fx.Node, name: str, depth: int) -> bool:
    """A factor that varies with the result's channels; every term; what is divided."""

    def zero(arg: fx.Node) -> bool:
        return _covers(tracer, arg, node) and vanishes(tracer, arg, depth)

    tensors = node.all_input_nodes
    if name == "mul":
        return any(zero(x) for x in tensors)
    if name == "div":
        return isinstance(node.args[0], fx.Node) and zero(node.args[0])
    return len(tensors) > 1 and all(zero(x) for x in tensors)


def _covers(tracer: Tracer, operand: fx.Node, node: fx.Node) -> bool:
    """Whether an operand has channels along every dimension that the result has them along."""
    ndim = len(shape_of(node))
    missing = ndim - len(shape_of(operand))
    own = {d + missing for f in tracer.of(operand) for d in varying(f)}
    return all(set(varying(f)) <= own for f in tracer.of(node))
