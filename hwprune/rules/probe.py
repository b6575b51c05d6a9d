"""Random propagation: what an operator does to channels, found by running it.

In: a call of the graph and the labels of its operands. Out: the labels of its result, or
UnsupportedForm. Values injected per channel must arrive at one place each, and the operator on
fewer channels must give those same places: then channels pass, whatever the operator is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from hwprune.program import get_tensor, tensor_value
from hwprune.rules.components import components
from hwprune.rules.engine import (
    Factors,
    Tracer,
    UnsupportedForm,
    along,
    combine,
    shape_of,
    varying,
)

LARGEST = 2**16  # elements of an operand that a call is still run for: it is run dozens of times
_TOLERANCE = 1e-9  # relative, in float64
_TRIALS = 2  # a nonlinearity may hide a change once


@dataclass(frozen=True)
class Call:
    """An operator and its arguments, to be run on other tensors."""

    node: fx.Node
    tensors: dict[fx.Node, Tensor]

    def on(self, changed: dict[fx.Node, Tensor]) -> Tensor:
        """The result in float64, with some operands replaced. Raises UnsupportedForm."""
        values = {n: t.clone() for n, t in (self.tensors | changed).items()}
        args = fx.map_arg(self.node.args, lambda n: values[n])
        kwargs = fx.map_arg(self.node.kwargs, lambda n: values[n])
        target: Any = self.node.target
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                result = target(*args, **kwargs)
        except Exception as error:
            raise UnsupportedForm("it cannot be run on random values") from error
        if not isinstance(result, Tensor):
            raise UnsupportedForm("it yields several values")
        return result.double()


def probe(tracer: Tracer, node: fx.Node) -> Factors:
    """The labels of a call's result, each dimension of each operand injected in turn.

    UnsupportedForm where channels meet, where fewer of them give something else, or where the
    call cannot be run on random values.
    """
    if not any(tracer.of(n) for n in node.all_input_nodes):
        return ()
    call = random_call(tracer.module, node)
    shape = shape_of(node)
    before = len(tracer.edges)
    operands: list[tuple[Factors, Sequence[int]]] = []
    for operand in call.tensors:
        for factor in tracer.of(operand):
            if len(varying(factor)) != 1:
                raise UnsupportedForm("labels vary over several dimensions")
            (dim,) = varying(factor)
            arrived, source = arrivals(call, operand, dim)
            moved = factor.ravel()[source]
            sizes = [s if d == arrived else 1 for d, s in enumerate(shape)]
            operands.append(((along(moved, arrived, len(shape)),), sizes))
    result = combine(tracer, node, operands, shape)
    united = components(tracer.count, tracer.edges[before:])
    check_fewer(call, {n: tracer.of(n) for n in call.tensors}, result, united)
    return result


def random_call(module: fx.GraphModule, node: fx.Node) -> Call:
    """A call with a random float64 tensor for every floating-point operand.

    Other operands are the graph's own constants; UnsupportedForm where they are computed.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable:
        raise UnsupportedForm("it is no operator, or changes its operands")
    generator = torch.Generator().manual_seed(0)
    tensors: dict[fx.Node, Tensor] = {}
    for operand in node.all_input_nodes:
        value = tensor_value(operand)
        if value is None:
            raise UnsupportedForm("an operand is no tensor")
        shape = shape_of(operand)
        if int(np.prod(shape)) > LARGEST:
            raise UnsupportedForm("its operands are too large to run it for a check")
        if value.is_floating_point():
            tensors[operand] = torch.randn(shape, generator=generator, dtype=torch.float64)
        elif operand.op == "get_attr":
            tensors[operand] = get_tensor(module, str(operand.target)).detach().clone()
        else:
            raise UnsupportedForm("an operand holds computed integers")
    return Call(node, tensors)


def arrivals(call: Call, operand: fx.Node, dim: int) -> tuple[int, np.ndarray]:
    """(dimension of the result, for each position there the one along `dim` that it depends on).

    UnsupportedForm where positions of the result depend on several, or on none, or where they
    lie along several dimensions.
    """
    size = call.tensors[operand].shape[dim]
    before = call.on({})
    bits = max(1, int(size - 1).bit_length())
    numbers = np.arange(size)
    source = np.zeros(tuple(before.shape), np.int64)
    for bit in range(bits):
        ones = changes(call, operand, dim, (numbers >> bit) & 1 == 1, before)
        zeros = changes(call, operand, dim, (numbers >> bit) & 1 == 0, before)
        if bool((ones & zeros).any()):
            raise UnsupportedForm("channels meet in it")
        if not bool((ones | zeros).all()):
            raise UnsupportedForm("not every value depends on a channel")
        source += ones.astype(np.int64) << bit
    dims = [d for d in range(source.ndim) if bool((source != source.take([0], axis=d)).any())]
    if len(dims) != 1:
        raise UnsupportedForm("channels do not lie along one dimension")
    return dims[0], np.moveaxis(source, dims[0], 0).reshape(source.shape[dims[0]], -1)[:, 0]


def changes(
    call: Call, operand: fx.Node, dim: int, chosen: np.ndarray, before: Tensor
) -> np.ndarray:
    """Where the result changes when the chosen positions of an operand get other values (bool)."""
    x = call.tensors[operand]
    if not x.is_floating_point():
        raise UnsupportedForm("channels of integers cannot be followed")
    places = torch.from_numpy(np.flatnonzero(chosen))
    found = np.zeros(tuple(before.shape), bool)
    for trial in range(_TRIALS):
        generator = torch.Generator().manual_seed(1 + trial)
        other = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        other = x.index_copy(dim, places, other.index_select(dim, places))
        after = call.on({operand: other})
        if after.shape != before.shape:
            raise UnsupportedForm("the result's shape depends on the values")
        found |= ~_same(before, after)
    return found


def check_fewer(
    call: Call, labels: dict[fx.Node, Factors], result: Factors, united: np.ndarray
) -> None:
    """UnsupportedForm unless the call on half of the channels gives the places they arrive at."""
    every = np.unique(np.concatenate([united[f].ravel() for fs in labels.values() for f in fs]))
    chosen = np.random.default_rng(0).permutation(every)[: max(1, len(every) // 2)]

    def kept(x: Tensor, factors: Factors) -> Tensor:
        for factor in factors:
            (dim,) = varying(factor)
            places = np.flatnonzero(np.isin(united[factor.ravel()], chosen))
            x = x.index_select(dim, torch.from_numpy(places))
        return x

    smaller = {n: kept(x, labels[n]) for n, x in call.tensors.items()}
    wanted, found = kept(call.on({}), result), call.on(smaller)
    if wanted.shape != found.shape or not bool(_same(wanted, found).all()):
        raise UnsupportedForm("it gives something else for fewer channels")


def _same(a: Tensor, b: Tensor) -> np.ndarray:
    close: np.ndarray = torch.isclose(a, b, rtol=_TOLERANCE, atol=1e-12, equal_nan=True).numpy()
    return close
