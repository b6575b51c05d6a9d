"""Any ATen call as a `Workload` for the fallback: the operator's name and its arguments.

`channel_affine`, which folding leaves, is one by itself too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from hwprune.errors import LoweringError
from hwprune.lower.affine import channel_affine
from hwprune.lower.functional import packet, place
from hwprune.lower.reference import encode
from hwprune.lower.root import shape
from hwprune.lower.spec import Attr, Step, TensorSpec, Workload


@dataclass(frozen=True)
class AtenCall:
    """A workload with the graph nodes of its inputs, its parameters and what it computes."""

    workload: Workload
    inputs: tuple[fx.Node, ...]
    params: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]


def aten_call(node: fx.Node) -> AtenCall:
    """A call, or one element of a call that yields a tuple.

    Raises LoweringError naming the operator and the user's line for anything but an ATen call
    on tensors and numbers.
    """
    if node.target is channel_affine:
        return _affine_call(node)
    source: Any = node
    item: Any = None
    if packet(node) == "getitem":
        source, item = node.args[0], node.args[1]
    if not isinstance(source, fx.Node) or not hasattr(source.target, "overloadpacket"):
        raise LoweringError(f"cannot lower {node.target}", where=place(node))
    inputs: list[fx.Node] = []
    params: list[fx.Node] = []

    def refer(value: Any) -> dict[str, int] | None:
        if not isinstance(value, fx.Node):
            return None
        kind, found = ("param", params) if value.op == "get_attr" else ("input", inputs)
        if value not in found:
            found.append(value)
        return {kind: found.index(value)}

    try:
        arguments = {
            "args": encode(_arguments(source), refer),
            "kwargs": encode(dict(source.kwargs), refer),
        }
    except LoweringError as error:
        raise LoweringError(f"{source.target}: {error.what}", where=place(node)) from error
    attrs: list[tuple[str, Attr]] = [("args", json.dumps(arguments, sort_keys=True))]
    if item is not None:
        attrs.append(("item", item))
    attrs.append(("target", str(source.target)))
    specs = tuple(map(_spec, inputs)), tuple(map(_spec, params))
    workload = Workload("aten", specs[0], _spec(node), specs[1], tuple(attrs))
    nodes = (node,) if source is node else (source, node)
    return AtenCall(workload, tuple(inputs), tuple(params), nodes)


def _arguments(node: fx.Node) -> list[Any]:
    """The arguments of a call, its index not negative: TVM's importer takes that for 0."""
    args: list[Any] = list(node.args)
    if packet(node) == "aten.select" and isinstance(args[2], int) and args[2] < 0:
        args[2] += shape(args[0])[args[1]]
    return args


def _affine_call(node: fx.Node) -> AtenCall:
    """Arithmetic with a constant for each channel."""
    x, *constants = (c for c in node.args if isinstance(c, fx.Node))
    specs = tuple(map(_spec, constants))
    workload = Workload("elementwise", (_spec(x),), _spec(node), specs, epilogue=(Step("affine"),))
    return AtenCall(workload, (x,), tuple(constants), (node,))


def _spec(node: fx.Node) -> TensorSpec:
    found = node.meta.get("val")
    if not isinstance(found, Tensor):
        raise LoweringError(f"{node.target} yields no tensor", where=place(node))
    return TensorSpec(shape(node), str(found.dtype).removeprefix("torch."))
