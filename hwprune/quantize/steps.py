"""Which parts of a folded graph become integer operators, and what each of them reads.

In: a `Program` from `fold_batch_norm`. Out: `QuantStep`s in execution order, without those whose
result nobody reads. An activation that clamps joins the operator that makes its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from hwprune.errors import LoweringError
from hwprune.lower.affine import channel_affine
from hwprune.lower.aten import aten_call
from hwprune.lower.epilogue import is_float, unary_step
from hwprune.lower.functional import argument, get_tensor, packet, place
from hwprune.lower.match import find_root, zero_pad
from hwprune.lower.movement import is_alias, transposition
from hwprune.lower.root import Root, is_parameter, shape
from hwprune.program import Program
from hwprune.quantize.graph import BY_FEATURE

Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-math.inf, math.inf)
LAYERS = frozenset(("conv2d", "linear"))
MOVES = frozenset(("reshape", "transpose"))
SAME_SCALE = frozenset(("reshape", "transpose", "max_pool", "avg_pool", "pad"))
_ROOTS = {
    "conv2d": "conv2d",
    "linear": "linear",
    "max_pool2d": "max_pool",
    "avg_pool2d": "avg_pool",
    "global_avg_pool": "mean",
    "concat": "concat",
    "softmax": "softmax",
}
_CLAMPING = frozenset(("conv2d", "linear", "add", "mul", "mean", "max_pool", "avg_pool"))


@dataclass(frozen=True, eq=False)
class QuantStep:
    """One operator to be: `kind` is that of `graph.py`, or "affine" (channels scaled and shifted).

    `node` computes, `result` is the value after the clamp to `bounds` (real numbers).
    `inputs` are values; `weight`, `bias` parameters (scale and shift of an affine, slope of prelu).
    """

    kind: str
    node: fx.Node
    result: fx.Node
    inputs: tuple[fx.Node, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weight: fx.Node | None = None
    bias: fx.Node | None = None
    bounds: Bounds = UNBOUNDED


def find_steps(program: Program, float_fallback: bool = False) -> tuple[QuantStep, ...]:
    """The steps of a folded program whose example has a batch of one.

    Raises LoweringError for operators without an int8 kernel, named with their place; with
    `float_fallback` they become steps of the kind "float".
    """
    found: dict[fx.Node, QuantStep] = {}
    for node in program.module.graph.nodes:
        if node.op == "call_function" and node not in found:
            step = _with_clamp(_find(node) or _fallback(node))
            found[step.result] = step
    steps = _needed(program.module.graph, found)
    missing = [s for s in steps if s.kind == "float"]
    if missing and not float_fallback:
        raise _no_kernel(missing)
    return steps


def check_float(step: QuantStep) -> None:
    """Raise LoweringError where not even float32 can carry a step: its values are no images."""
    tensors = [value.meta.get("val") for value in (step.node, *step.inputs)]
    if not all(isinstance(t, torch.Tensor) and t.dtype == torch.float32 for t in tensors):
        raise LoweringError(
            f"{step.node.target} works on other values than float32 tensors",
            where=place(step.node),
            hint="no kernel works on those: take it out of the network",
        )


def _no_kernel(missing: list[QuantStep]) -> LoweringError:
    names = [_operator(s.node) for s in missing]
    first, more = missing[0], sorted(set(names) - {names[0]})
    return LoweringError(
        f"no int8 kernel for {names[0]}" + (f" (nor for {', '.join(more)})" if more else ""),
        where=place(first.node),
        hint="compile --float-fallback (QuantConfig(float_fallback=True)) runs it in float32",
    )


def _operator(node: fx.Node) -> str:
    """The name of what a node computes, or is an element of."""
    if node.target is channel_affine:
        return f"{BY_FEATURE} (of other values than images)"
    source = node.args[0] if packet(node) == "getitem" else node
    return packet(source) if isinstance(source, fx.Node) else str(node.target)


def _needed(graph: fx.Graph, found: Mapping[fx.Node, QuantStep]) -> tuple[QuantStep, ...]:
    """The steps that the outputs depend on."""
    wanted = set(graph.output_node().all_input_nodes)
    kept: list[QuantStep] = []
    for node in reversed(list(graph.nodes)):
        if node in wanted and node in found:
            kept.append(found[node])
            wanted.update(found[node].inputs)
    return tuple(reversed(kept))


def _find(node: fx.Node) -> QuantStep | None:
    if not is_float(node):
        return None
    root = find_root(node)
    if root is not None:
        return _from_root(node, root)
    for finder in (_pair, _movement, _pad, _channelwise, _function):
        step = finder(node)
        if step is not None:
            return step
    return None


def _from_root(node: fx.Node, root: Root) -> QuantStep | None:
    kind = _ROOTS.get(root.op)
    pools = kind in ("max_pool", "avg_pool")
    if kind is None or not all(v.op != "get_attr" for v in root.inputs):
        return None
    if pools and (root.attrs.get("dilation", (1, 1)) != (1, 1) or root.attrs.get("divisor")):
        return None
    return QuantStep(kind, node, node, root.inputs, root.attrs, root.weight, root.bias)


def _pair(node: fx.Node) -> QuantStep | None:
    """The sum or product of two computed values."""
    kind = {"aten.add": "add", "aten.mul": "mul"}.get(packet(node))
    if kind is None or argument(node, 2, "alpha", 1) != 1:
        return None
    pair = node.args[:2]
    if not all(isinstance(v, fx.Node) and is_float(v) and v.op != "get_attr" for v in pair):
        return None
    sizes = [shape(v) for v in pair]  # type: ignore[arg-type]
    if sizes[0] == sizes[1]:
        return QuantStep(kind, node, node, pair)  # type: ignore[arg-type]
    image = len(shape(node)) == 4 and kind == "mul"
    for first, second in (pair, pair[::-1]):
        gate = (*shape(node)[:2], 1, 1)
        if image and shape(first) == shape(node) and shape(second) == gate:  # type: ignore[arg-type]
            return QuantStep(kind, node, node, (first, second))  # type: ignore[arg-type]
    return None


def _movement(node: fx.Node) -> QuantStep | None:
    axes = transposition(node)
    if axes is not None and axes[0] == 0:
        return QuantStep("transpose", node, node, node.args[:1], {"axes": axes})  # type: ignore[arg-type]
    if is_alias(node) and shape(node)[:1] == shape(node.args[0])[:1]:  # type: ignore[arg-type]
        return QuantStep("reshape", node, node, node.args[:1])  # type: ignore[arg-type]
    return None


def _pad(node: fx.Node) -> QuantStep | None:
    pads = zero_pad(node)
    if pads is None:
        return None
    return QuantStep("pad", node, node, node.args[:1], {"padding": pads})  # type: ignore[arg-type]


def _channelwise(node: fx.Node) -> QuantStep | None:
    x = node.args[0] if node.args else None
    if not isinstance(x, fx.Node) or not is_float(x) or x.op == "get_attr":
        return None
    if packet(node) == "aten.prelu" and is_parameter(node.args[1]) and len(shape(x)) in (2, 4):
        return QuantStep("prelu", node, node, (x,), weight=node.args[1])  # type: ignore[arg-type]
    if node.target is channel_affine and len(shape(x)) == 4:
        scale, shift = node.args[1:3]
        return QuantStep("affine", node, node, (x,), weight=scale, bias=shift)  # type: ignore[arg-type]
    return None


def _function(node: fx.Node) -> QuantStep | None:
    """A function of one value at a time: whatever it is, a table of 256 results."""
    values = _values(node)
    if len(values) != 1 or not is_float(values[0]) or node.args[:1] != values:
        return None
    if node.target is channel_affine:
        alike = all(bool((c == c[0]).all()) for c in _constants(node))
        return QuantStep("lookup", node, node, values) if alike else None
    tags = getattr(node.target, "tags", ())
    plain = torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags
    if not plain and unary_step(node) is None:
        return None
    read: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), read.append)
    if len(read) != 1 or shape(node) != shape(values[0]):
        return None
    return QuantStep("lookup", node, node, values)


def _fallback(node: fx.Node) -> QuantStep:
    """A call as it is, or one element of a call that yields several tensors."""
    try:
        return QuantStep("float", node, node, aten_call(node).inputs)
    except LoweringError:  # no ATen call of tensors: said where the step is needed
        return QuantStep("float", node, node, _values(node))


def _values(node: fx.Node) -> tuple[fx.Node, ...]:
    return tuple(source for source in node.all_input_nodes if source.op != "get_attr")


def _with_clamp(step: QuantStep) -> QuantStep:
    """The step with the clamp that alone reads it."""
    if step.kind not in (*_CLAMPING, "affine") or len(step.node.users) != 1:
        return step
    user = next(iter(step.node.users))
    clamp = unary_step(user) if user.op == "call_function" and is_float(user) else None
    if clamp is None or clamp.op not in ("relu", "clamp"):
        return step
    bounds = (0.0, math.inf) if clamp.op == "relu" else (clamp.args[0], clamp.args[1])
    return replace(step, result=user, bounds=bounds)


def _constants(node: fx.Node) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of a `channel_affine`, each (C,)."""
    module = node.graph.owning_module
    assert module is not None
    scale, shift = (get_tensor(module, str(c.target)).detach() for c in node.args[1:3])  # type: ignore[union-attr]
    return scale, shift


def table_function(step: QuantStep) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a "lookup" step computes, on a tensor of any values (float32, of one dimension)."""
    node = step.node
    if node.target is channel_affine:
        scale, shift = _constants(node)
        return lambda x: x * scale[0] + shift[0]
    return lambda x: node.target(x, *node.args[1:], **node.kwargs)  # type: ignore[operator]
