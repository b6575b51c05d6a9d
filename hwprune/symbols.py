"""What a captured graph yields at the sizes of its example inputs, without making any call.

In: a graph whose nodes hold fake tensors with symbolic sizes. Out: fake tensors with plain sizes,
or nothing where a size is not known by its symbols.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from hwprune.fakes import Fakes


class Unknown(Exception):  # noqa: N818 - not an error: the graph is run on fake tensors then
    """A value is not known from the symbols of the inputs' sizes."""


class Sizes:
    """Symbols of sizes and the numbers that they stand for."""

    def __init__(self) -> None:
        self._symbols: dict[sympy.Symbol, sympy.Integer] = {}
        self._numbers: dict[sympy.Expr, int] = {}

    def bind(self, known: Tensor, given: Tensor) -> None:
        """Learn the symbols in the shape of an input from an example. Raises Unknown."""
        if known.dtype != given.dtype or known.ndim != given.ndim:
            raise Unknown
        for size, number in zip(known.shape, given.shape, strict=True):
            if isinstance(size, torch.SymInt):
                symbol = size.node.expr
                if not symbol.is_Symbol:
                    raise Unknown
                self._symbols[symbol] = sympy.Integer(number)
            elif size != number:
                raise Unknown

    def number(self, size: int | torch.SymInt) -> int:
        """A size as a plain number. Raises Unknown."""
        if not isinstance(size, torch.SymInt):
            return size
        expression = size.node.expr
        if expression not in self._numbers:
            found = expression.xreplace(self._symbols)
            if not found.is_Integer:
                raise Unknown
            self._numbers[expression] = int(found)
        return self._numbers[expression]


def concrete_values(
    graph: fx.Graph, attributes: Mapping[fx.Node, Any], inputs: tuple[Tensor, ...]
) -> dict[fx.Node, Any]:
    """The value of every node at the sizes of `inputs`: plain numbers and fake tensors.

    `attributes` are what the `get_attr` nodes hold. Raises Unknown where a node holds no value,
    other attributes than it was captured with, or a size that the inputs do not tell.
    """
    fakes, sizes = Fakes(), Sizes()
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in graph.nodes:
        known = node.meta.get("val")
        if node.op == "output":
            break
        if node.op == "placeholder":
            example = next(given)
            if not isinstance(known, Tensor):
                raise Unknown
            sizes.bind(known, example)
            values[node] = fakes.like(example)
        elif node.op == "get_attr":
            values[node] = fakes.like(attributes[node])
            _check_same(known, attributes[node])
        elif "val" not in node.meta:
            raise Unknown
        else:
            values[node] = map_aggregate(known, lambda v: _concrete(v, sizes, fakes))
    return values


def _check_same(known: Any, held: Any) -> None:
    """Unknown where an attribute is not what the graph was captured with."""
    if isinstance(held, Tensor) and not (
        isinstance(known, Tensor) and known.dtype == held.dtype and known.shape == held.shape
    ):
        raise Unknown


def _concrete(value: Any, sizes: Sizes, fakes: Fakes) -> Any:
    if isinstance(value, Tensor):
        shape = tuple(map(sizes.number, value.shape))
        stride = tuple(map(sizes.number, value.stride()))
        return fakes.empty(shape, stride, value.dtype, value.device)
    if isinstance(value, torch.SymInt):
        return sizes.number(value)
    if isinstance(value, torch.SymFloat | torch.SymBool):
        raise Unknown
    return value
