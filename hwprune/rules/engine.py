"""The vocabulary of the label rules: what a rule is given, may say and must return.

A *label* is an integer: one channel of one parameter axis. A value carries `Factors`: label
arrays with the value's number of dimensions, size 1 along the dimensions they do not vary
over. An element of the value survives if its label in every factor survives. No factor varies
over a dimension that another factor of the same value varies over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx

from hwprune.forms import USUAL, Forms
from hwprune.program import get_tensor, tensor_value

Factors = tuple[np.ndarray, ...]
Edges = tuple[np.ndarray, np.ndarray]


_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


class Outputs(list[Factors]):
    """The factors of each output of an operator that returns several tensors."""


class UnsupportedForm(Exception):  # noqa: N818 - not an error: it freezes what the node touches
    """A rule met a form of its operator that it does not cover; says which."""


@dataclass(frozen=True)
class Choice:
    """Groups of channels: units are whole groups, or the same offset in every group.

    `form` names the option of `Forms` that may decide it. `statistics` are labels over which a
    normalisation runs where units are offsets.
    """

    node: fx.Node
    form: str
    wholes: tuple[Edges, ...]
    offsets: tuple[Edges, ...]
    output: np.ndarray
    per_group: int  # output channels of a group; 0 where both forms are the same
    whole_only: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    reason: str = ""  # why the labels of `whole_only` must stay where units are whole groups
    statistics: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class Freeze:
    """Labels that must stay, and the node and reason why."""

    labels: np.ndarray
    node: fx.Node
    reason: str


@dataclass
class Tracer:
    """Collects unions, freezes and choices while the rules run over a graph, once."""

    module: fx.GraphModule
    values: dict[fx.Node, Factors | Outputs] = field(default_factory=dict)
    edges: list[Edges] = field(default_factory=list)
    freezes: list[Freeze] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    forms: Forms = USUAL
    merges: list[Edges] = field(default_factory=list)
    statistics: list[np.ndarray] = field(default_factory=list)
    parameters: dict[int, tuple[str, tuple[np.ndarray | None, ...]]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def fresh(self, size: int) -> np.ndarray:
        """`size` new labels."""
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def fresh_axes(self, shape: Sequence[int], free: Sequence[int]) -> Factors:
        """One factor of new labels for each dimension in `free` that is longer than one."""
        return tuple(_along(self.fresh(shape[d]), d, len(shape)) for d in free if shape[d] > 1)

    def parameter(self, node: fx.Node) -> Factors:
        """The factors of a parameter or buffer: labels of its own on every axis.

        Buffers of whole numbers hold positions or indices, not channels.
        """
        tensor = get_tensor(self.module, str(node.target))
        if not isinstance(tensor, torch.Tensor):
            return ()
        if tensor.dtype in _INTEGERS and not isinstance(tensor, torch.nn.Parameter):
            return ()
        if id(tensor) not in self.parameters:
            axes = tuple(self.fresh(size) if size > 1 else None for size in tensor.shape)
            self.parameters[id(tensor)] = (str(node.target), axes)
        name, axes = self.parameters[id(tensor)]
        self.aliases[str(node.target)] = name
        return tuple(_along(v, d, tensor.ndim) for d, v in enumerate(axes) if v is not None)

    def of(self, arg: Any) -> Factors:
        """The factors of an argument; none for a number or a missing tensor."""
        if not isinstance(arg, fx.Node):
            return ()
        value = self.values.get(arg, ())
        return () if isinstance(value, Outputs) else value

    def unite(self, a: np.ndarray, b: np.ndarray) -> None:
        """Labels at the same position live or die together; broadcasts like NumPy."""
        a, b = np.broadcast_arrays(a, b)
        self.edges.append((a.ravel(), b.ravel()))

    def merge(self, a: np.ndarray, b: np.ndarray) -> None:
        """Unite labels that are one channel wherever they go: a head, or a channel of all heads.

        Operators that saw them before this was known ask for a second tracing (`merging`).
        """
        self.unite(a, b)
        self.merges.append(self.edges[-1])

    def freeze(self, labels: np.ndarray | None, node: fx.Node, reason: str) -> None:
        """These labels must stay."""
        if labels is not None and labels.size:
            self.freezes.append(Freeze(np.unique(labels), node, reason))

    def freeze_value(self, arg: Any, node: fx.Node, reason: str) -> None:
        """Every label that a value (or each output of a value) carries must stay."""
        value = self.values.get(arg, ()) if isinstance(arg, fx.Node) else ()
        for factors in value if isinstance(value, Outputs) else [value]:
            for factor in factors:
                self.freeze(factor, node, reason)

    def vector(self, factors: Factors, dim: int) -> np.ndarray | None:
        """The labels along one dimension, or None where it carries none.

        Labels that vary over other dimensions too are united along those.
        """
        for factor in factors:
            if factor.shape[dim] > 1:
                line = np.moveaxis(factor, dim, 0).reshape(factor.shape[dim], -1)
                if line.shape[1] > 1:
                    self.unite(line[:, :1], line)
                return line[:, 0]
        return None

    def unite_axes(
        self, a: np.ndarray | None, b: np.ndarray | None, node: fx.Node, reason: str
    ) -> None:
        """Two axes of one size that meet: united, or frozen where one carries no labels."""
        if a is not None and b is not None:
            self.unite(a, b)
        else:
            self.freeze(a if b is None else b, node, reason)

    def fix_dim(self, factors: Factors, dim: int, node: fx.Node, reason: str) -> Factors:
        """No label may vary along `dim` any more: its size is needed as it is."""
        kept: list[np.ndarray] = []
        for factor in factors:
            if factor.shape[dim] == 1:
                kept.append(factor)
            elif len(varying(factor)) == 1:
                self.freeze(factor, node, reason)
            else:
                first = factor.take([0], axis=dim)
                self.unite(first, factor)
                kept.append(first)
        return tuple(kept)


Rule = Callable[[Tracer, fx.Node], Factors | Outputs]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators, by `name` or `name.overload`, without `aten.`.

    In-place variants (`relu_`) share the rule of the operator they are the variant of.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, name
            RULES[name] = function
        return function

    return register


def operator_names(node: fx.Node) -> tuple[str, str]:
    """(`name.overload`, `name`) of an ATen call without `aten.` and the in-place underscore."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return str(target), str(target)
    name = target._schema.name.removeprefix("aten::")
    name = name.removesuffix("_") if not name.startswith("__") else name
    return f"{name}.{target._overloadname}", name


def find_rule(node: fx.Node) -> Rule | None:
    """The rule that covers a call, if any."""
    full, name = operator_names(node)
    return RULES.get(full) or RULES.get(name)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """A call's argument, wherever it was given."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def shape_of(arg: Any) -> tuple[int, ...]:
    """The concrete shape of a tensor node; UnsupportedForm where it has none."""
    value = tensor_value(arg) if isinstance(arg, fx.Node) else None
    if value is None or not all(isinstance(s, int) for s in value.shape):
        raise UnsupportedForm("no single tensor of known shape")
    return tuple(value.shape)


def varying(factor: np.ndarray) -> tuple[int, ...]:
    """The dimensions that a label array varies over."""
    return tuple(d for d, size in enumerate(factor.shape) if size > 1)


def _along(labels: np.ndarray, dim: int, ndim: int) -> np.ndarray:
    return labels.reshape([-1 if d == dim else 1 for d in range(ndim)])


def along(labels: np.ndarray, dim: int, ndim: int) -> np.ndarray:
    """A label vector laid along `dim` of a value with `ndim` dimensions."""
    return _along(labels, dim, ndim)


def combine(
    tracer: Tracer,
    node: fx.Node,
    operands: Sequence[tuple[Factors, Sequence[int]]],
    shape: Sequence[int],
) -> Factors:
    """The factors of an element-by-element result: positions that meet are united.

    `operands` are (factors, shape) of each tensor, broadcast to `shape`. A label that meets a
    full-sized dimension without labels must stay.
    """
    ndim = len(shape)
    lifted = [
        ([f.reshape((1,) * (ndim - f.ndim) + f.shape) for f in factors],
         (1,) * (ndim - len(s)) + tuple(s))
        for factors, s in operands
    ]  # fmt: skip
    result: list[np.ndarray] = []
    for factors, _ in lifted:
        for factor in factors:
            for fitted in _fit_partners(tracer, node, factor, lifted):
                result = _merge(tracer, result, fitted)
    return tuple(result)


def _fit_partners(
    tracer: Tracer,
    node: fx.Node,
    factor: np.ndarray,
    operands: Sequence[tuple[Sequence[np.ndarray], Sequence[int]]],
) -> Factors:
    """A factor that varies over no dimension whose size an operand fixes; none if frozen."""
    fitted: Factors = (factor,)
    for dim in varying(factor):
        for others, size in operands:
            if size[dim] > 1 and not any(f.shape[dim] > 1 for f in others):
                fitted = tracer.fix_dim(fitted, dim, node, "meets a dimension whose size is fixed")
    return fitted


def _merge(tracer: Tracer, result: list[np.ndarray], factor: np.ndarray) -> list[np.ndarray]:
    """Unite with what varies over the same dimensions, and keep the more telling of the two.

    That is the one over more dimensions, then the one with fewer labels (already merged).
    """
    kept: list[np.ndarray] = []
    for other in result:
        if set(varying(other)) & set(varying(factor)):
            tracer.unite(other, factor)
            factor = min(other, factor, key=lambda f: (-len(varying(f)), _distinct(f)))
        else:
            kept.append(other)
    return [*kept, factor]


def _distinct(factor: np.ndarray) -> int:
    """How many labels a factor has; most carry new ones, which ascend and need no sorting."""
    flat = factor.ravel()
    ascends = bool((flat[1:] > flat[:-1]).all())
    return len(flat) if ascends else len(np.unique(flat))
