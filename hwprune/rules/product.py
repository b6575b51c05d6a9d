"""Rules of products of activations: batched matrix products and Einstein sums.

A dimension that both operands carry along (the batch, heads, windows) indexes independent
products. Where labels vary over it and over a multiplied dimension together, they are channels of
heads: what a unit is, is chosen (`Tracer.forms`).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from hwprune.forms import HEADS
from hwprune.rules.engine import (
    Factors,
    Tracer,
    UnsupportedForm,
    argument,
    combine,
    rule,
    shape_of,
    varying,
)
from hwprune.rules.silence import vanishes

NO_CHANNELS = "reads channels that cannot be removed"


@dataclass(frozen=True)
class Operand:
    """A factor of a product: its labels and shape, one letter for every dimension.

    `vanishes`: it is zero in every channel that is silenced.
    """

    factors: Factors
    shape: Sequence[int]
    letters: str
    vanishes: bool

    def without(self, factors: Factors) -> Operand:
        """The same operand with these labels only."""
        return Operand(factors, self.shape, self.letters, self.vanishes)


def operand(tracer: Tracer, arg: fx.Node, letters: str) -> Operand:
    """A value as it enters a product."""
    return Operand(tracer.of(arg), shape_of(arg), letters, vanishes(tracer, arg))


def contract(
    tracer: Tracer, node: fx.Node, a: Operand, b: Operand, out: str, shape: Sequence[int]
) -> Factors:
    """The factors of an Einstein sum of two operands, of this shape.

    Summed dimensions are united, those carried along meet, the others pass.
    """
    shared = [x for x in a.letters if x in b.letters]
    carried = [x for x in shared if x in out]
    a, b = (_by_unit(tracer, node, x, carried) for x in (a, b))
    for letter in shared:
        if letter not in out:
            a, b = _sum(tracer, node, a, b, letter)
    a, b = (_sum_alone(tracer, node, x, out) for x in (a, b))
    return combine(tracer, node, [_placed(x, out) for x in (a, b)], shape)


def _by_unit(tracer: Tracer, node: fx.Node, x: Operand, carried: Sequence[str]) -> Operand:
    """Labels over heads and channels together: of heads only, or of channels only, as chosen."""
    factors: list[np.ndarray] = []
    heads = {x.letters.index(c) for c in carried}
    for factor in x.factors:
        over = set(varying(factor))
        if over & heads and over - heads:
            gone = sorted(over - heads if tracer.forms.attention == HEADS else over & heads)
            first = factor.take([0], axis=gone[0])
            for dim in gone[1:]:
                first = first.take([0], axis=dim)
            tracer.merge(*(v.ravel() for v in np.broadcast_arrays(first, factor)))
            factors.append(first)
        elif over & heads and tracer.forms.attention != HEADS:
            tracer.freeze(factor, node, "heads stay whole where units are channels of heads")
        else:
            factors.append(factor)
    return x.without(tuple(factors))


def _sum(
    tracer: Tracer, node: fx.Node, a: Operand, b: Operand, letter: str
) -> tuple[Operand, Operand]:
    """Unite a dimension that is multiplied and summed; a channel silenced there adds nothing."""
    operands = (a, b)
    labels = [tracer.vector(x.factors, x.letters.index(letter)) for x in operands]
    if labels[0] is not None and labels[1] is not None and not (a.vanishes or b.vanishes):
        for found in labels:
            tracer.freeze(found, node, "a silenced channel may be nonzero in this product")
    else:
        tracer.unite_axes(labels[0], labels[1], node, NO_CHANNELS)
    left = [
        x.without(tuple(f for f in x.factors if f.shape[x.letters.index(letter)] == 1))
        for x in operands
    ]
    return left[0], left[1]


def _sum_alone(tracer: Tracer, node: fx.Node, x: Operand, out: str) -> Operand:
    """Dimensions that are summed within one operand keep their length."""
    factors = x.factors
    for dim, letter in enumerate(x.letters):
        if letter not in out:
            factors = tracer.fix_dim(factors, dim, node, "sums the channels of a dimension")
    return x.without(factors)


def _placed(x: Operand, out: str) -> tuple[Factors, list[int]]:
    """(factors, shape) of an operand with its dimensions where the result has them."""
    order = [x.letters.index(c) for c in out if c in x.letters]
    rest = [d for d in range(len(x.letters)) if d not in order]
    where = [c in x.letters for c in out]

    def place(sizes: Sequence[int]) -> list[int]:
        moved = iter([sizes[d] for d in order])
        return [next(moved) if there else 1 for there in where]

    factors = tuple(f.transpose(order + rest).reshape(place(f.shape)) for f in x.factors)
    return factors, place(x.shape)


def batch_letters(*ndims: int) -> str:
    """Letters for the dimensions before the last two of the longest operand, capitals."""
    return string.ascii_uppercase[: max(0, max(ndims) - 2)]


def tail(letters: str, count: int) -> str:
    """The last `count` letters."""
    return letters[len(letters) - count :]


@rule("bmm")
def bmm(tracer: Tracer, node: fx.Node) -> Factors:
    """`a @ b` of two batches of matrices."""
    return products(tracer, node, node.args[0], node.args[1])


@rule("baddbmm")
def baddbmm(tracer: Tracer, node: fx.Node) -> Factors:
    """`bias + a @ b`."""
    bias: Any = node.args[0]
    found = products(tracer, node, node.args[1], node.args[2])
    shape = shape_of(node)
    return combine(tracer, node, [(found, shape), (tracer.of(bias), shape_of(bias))], shape)


def products(tracer: Tracer, node: fx.Node, a: Any, b: Any) -> Factors:
    """`a @ b` with any leading dimensions, which broadcast."""
    left, right = len(shape_of(a)), len(shape_of(b))
    if min(left, right) < 2:
        raise UnsupportedForm("a vector in a product of activations")
    batch = batch_letters(left, right)
    first = operand(tracer, a, tail(batch, left - 2) + "mk")
    second = operand(tracer, b, tail(batch, right - 2) + "kn")
    return contract(tracer, node, first, second, batch + "mn", shape_of(node))


@rule("einsum")
def einsum(tracer: Tracer, node: fx.Node) -> Factors:
    """`einsum(equation, operands)` of two operands, each with letters of its own."""
    equation, tensors = str(node.args[0]).replace(" ", ""), argument(node, 1, "tensors")
    source, arrow, out = equation.partition("->")
    letters = source.split(",")
    plain = arrow and "." not in equation and all(len(set(x)) == len(x) for x in [*letters, out])
    if not plain or len(letters) != 2:
        raise UnsupportedForm(f"the equation {equation}")
    first, second = (operand(tracer, t, x) for t, x in zip(tensors, letters, strict=True))
    return contract(tracer, node, first, second, out, shape_of(node))
