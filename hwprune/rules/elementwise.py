"""Rules of operators that work element by element: labels that meet are united."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from hwprune.program import tensor_value
from hwprune.rules.engine import (
    Factors,
    Tracer,
    along,
    argument,
    combine,
    operator_names,
    rule,
    shape_of,
    varying,
)

_UNARY = [
    "relu",
    "relu6",
    "silu",
    "gelu",
    "sigmoid",
    "tanh",
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "leaky_relu",
    "elu",
    "celu",
    "selu",
    "mish",
    "softplus",
    "softsign",
    "softshrink",
    "hardshrink",
    "tanhshrink",
    "log_sigmoid",
    "logit",
    "threshold",
    "rrelu",
    "exp",
    "expm1",
    "log",
    "log1p",
    "log2",
    "log10",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "abs",
    "neg",
    "sign",
    "sgn",
    "square",
    "sin",
    "cos",
    "tan",
    "erf",
    "erfc",
    "floor",
    "ceil",
    "round",
    "trunc",
    "frac",
    "clamp",
    "clamp_min",
    "clamp_max",
    "clip",
    "nan_to_num",
    "positive",
    "clone",
    "contiguous",
    "detach",
    "alias",
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
    "to",
    "_to_copy",
    "type_as",
    "float",
    "half",
    "double",
    "lift_fresh_copy",
    "lift_fresh",
    "isnan",
    "isinf",
    "isfinite",
    "logical_not",
    "bitwise_not",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "rand_like",
    "randn_like",
    "fill",
    "zero",
    "_assert_tensor_metadata",
]

_NARY = [
    "add",
    "sub",
    "rsub",
    "mul",
    "div",
    "true_divide",
    "floor_divide",
    "remainder",
    "fmod",
    "pow",
    "minimum",
    "maximum",
    "max.other",
    "min.other",
    "atan2",
    "where",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "logical_and",
    "logical_or",
    "logical_xor",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "__and__",
    "__or__",
    "__xor__",
    "masked_fill",
    "copy",
    "lerp",
    "addcmul",
    "addcdiv",
    "hypot",
    "fmax",
    "fmin",
    "float_power",
    "xlogy",
    "subtract",
    "multiply",
    "divide",
    "clamp.Tensor",
    "clamp_min.Tensor",
    "clamp_max.Tensor",
    "clip.Tensor",
]


@rule(*_UNARY)
def unary(tracer: Tracer, node: fx.Node) -> Factors:
    """One tensor in, the same shape out."""
    return tracer.of(argument(node, 0, "input") or node.kwargs.get("self"))


@rule(*_NARY)
def nary(tracer: Tracer, node: fx.Node) -> Factors:
    """Several tensors that broadcast."""
    operands = [a for a in node.all_input_nodes if tensor_value(a) is not None]
    return combine(tracer, node, [(tracer.of(a), shape_of(a)) for a in operands], shape_of(node))


@rule("prelu", "batch_norm", "instance_norm")
def per_channel(tracer: Tracer, node: fx.Node) -> Factors:
    """Parameters of one value per channel (dimension 1). Statistics run within a channel."""
    shape = shape_of(node)
    x = node.args[0]
    channel = 1 if len(shape) > 1 else 0
    factors = tracer.of(x)
    if standardises(node):
        tracer.statistics += [f.ravel() for f in factors if varying(f) == (len(shape) - 1,)]
    for dim in range(len(shape)) if "norm" in str(node.target) else ():
        if dim != channel and not (standardises(node) and dim == len(shape) - 1):
            factors = tracer.fix_dim(factors, dim, node, "statistics run over these positions")
    operands: list[tuple[Factors, Sequence[int]]] = [(factors, shape_of(x))]
    for arg in node.args[1:]:
        if isinstance(arg, fx.Node):
            size = shape_of(arg)[0]
            factors = tuple(along(f.ravel(), channel, len(shape)) for f in tracer.of(arg))
            placed = [size if d == channel else 1 for d in range(len(shape))]
            operands.append((factors, placed))
    return combine(tracer, node, operands, shape)


def standardises(node: fx.Node) -> bool:
    """Whether a call is a batch norm by statistics of its own over rows, as of a layer's weight."""
    if operator_names(node)[1] != "batch_norm" or node.args[3] is not None:
        return False
    value = tensor_value(node)
    return value is not None and value.ndim == 3


@rule("glu")
def gated(tracer: Tracer, node: fx.Node) -> Factors:
    """First half times the sigmoid of the second: the halves are united."""
    x, dim = node.args[0], argument(node, 1, "dim", -1)
    shape = shape_of(x)
    dim %= len(shape)
    half = shape[dim] // 2
    labels = tracer.vector(tracer.of(x), dim)
    others = tuple(f for f in tracer.of(x) if f.shape[dim] == 1)
    if labels is None:
        return others
    tracer.unite(labels[:half], labels[half:])
    return (*others, along(labels[:half], dim, len(shape)))


@rule("zeros", "ones", "full", "new_zeros", "new_ones", "new_full")
def constant(tracer: Tracer, node: fx.Node) -> Factors:
    """A tensor of equal values: any of its dimensions can shrink."""
    shape = shape_of(node)
    position = 1 if "new_" in str(node.target) else 0
    sizes = argument(node, position, "size")
    fixed = [d for d, size in enumerate(sizes) if not isinstance(size, int)]
    return tracer.fresh_axes(shape, [d for d in range(len(shape)) if d not in fixed])
