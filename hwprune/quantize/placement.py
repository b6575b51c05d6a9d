"""An `IntegerGraph` in the making: in which tensor, and in what order of axes, every value lies.

Images lie as (N, H, W, C). A permutation of axes moves nothing while every reader takes the order
in which a value lies; who needs another order gets one `Transpose` (or `Reshape`, where only axes
of size 1 trade places).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from hwprune.lower.functional import place
from hwprune.lower.root import shape
from hwprune.quantize.graph import (
    FLOAT32,
    INT8,
    Dequantize,
    IntegerTensor,
    Operator,
    Reshape,
    Transpose,
)
from hwprune.quantize.scheme import Scheme

Order = tuple[int, ...]
NHWC: Order = (0, 2, 3, 1)


def plain(rank: int) -> Order:
    """The order that torch has."""
    return tuple(range(rank))


def usual(rank: int) -> Order:
    """The order in which inputs and outputs of the network lie: images (N, H, W, C)."""
    return NHWC if rank == 4 else plain(rank)


def moves(sizes: Sequence[int], before: Order, after: Order) -> bool:
    """Whether another order of axes moves any element."""
    wide = [[d for d in order if sizes[d] != 1] for order in (before, after)]
    return wide[0] != wide[1]


@dataclass
class Placement:
    """The tensors and operators so far. `placed` has for every value (tensor, order of axes)."""

    scheme: Scheme
    tensors: dict[str, IntegerTensor] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)
    placed: dict[fx.Node, tuple[str, Order]] = field(default_factory=dict)

    def put(self, node: fx.Node, order: Order, name: str = "", dtype: str = INT8) -> str:
        """A new tensor for a value (under the node's name), which lies there from now on."""
        name = name or node.name
        params = self.scheme.of(node.name)
        sizes = tuple(shape(node)[d] for d in order)
        meaning = (params.scale, params.zero_point) if dtype == INT8 else (1.0, 0)
        self.tensors[name] = IntegerTensor(name, sizes, dtype, *meaning)
        self.placed[node] = (name, order)
        return name

    def emit(
        self, kind: type[Operator], node: fx.Node, inputs: Sequence[str], output: str, **fields: Any
    ) -> None:
        """Append an operator that computes (a part of) a node."""
        self.operators.append(kind(node.name, tuple(inputs), output, place(node), **fields))

    def order(self, node: fx.Node) -> Order:
        """In what order the axes of a value lie."""
        return self.placed[node][1]

    def read(self, node: fx.Node, order: Order) -> str:
        """The tensor that has a value in an order of axes, made where there is none yet."""
        name, have = self.placed[node]
        if have == order:
            return name
        found = f"{name}_{''.join(map(str, order))}"
        if found not in self.tensors:
            dtype = self.tensors[name].dtype
            self.put(node, order, found, dtype)
            if moves(shape(node), have, order):
                axes = tuple(have.index(d) for d in order)
                self.emit(Transpose, node, (name,), found, axes=axes)
            else:
                self.emit(Reshape, node, (name,), found)
            self.placed[node] = (name, have)
        return found

    def read_float(self, node: fx.Node) -> str:
        """The float32 tensor of a value, as torch has it."""
        name, order = self.placed[node]
        real = f"{name}_float"
        if real not in self.tensors:
            self.put(node, order, real, FLOAT32)
            self.emit(Dequantize, node, (name,), real)
        else:
            self.placed[node] = (real, order)
        found = self.read(node, plain(len(order)))
        self.placed[node] = (name, order)
        return found
