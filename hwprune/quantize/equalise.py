"""Cross-layer equalisation: channels of neighbouring layers scaled against each other.

A channel may be divided by any positive number where it is made and multiplied by it where it is
read, if all that lies between scales with it. With s = sqrt(r1 / r2), r1 and r2 the largest weights
that make and that read the channel, both become sqrt(r1 r2), and the channels of one value become
alike in range (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias
Correction, ICCV 2019, section 4.1).

In: a folded program and its steps. Out: the same function with other weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from hwprune.lower.functional import get_tensor, set_tensor
from hwprune.lower.root import shape
from hwprune.program import Program
from hwprune.quantize.simulate import own_graph
from hwprune.quantize.steps import LAYERS, UNBOUNDED, QuantStep

_LINEAR = frozenset(("max_pool", "avg_pool", "mean", "pad"))  # scale with their input
_ROUNDS = 20
_LARGEST = 1e3  # factor of a channel


@dataclass(frozen=True)
class _Pair:
    """A layer and the only one that reads its channels."""

    makes: QuantStep
    reads: QuantStep


def equalise(program: Program, steps: Sequence[QuantStep]) -> Program:
    """The program with equalised weights; `program` is left as it was."""
    module = own_graph(program)
    weights = _Weights(module, steps)
    pairs = find_pairs(steps)
    for _ in range(_ROUNDS):
        change = max((weights.balance(pair) for pair in pairs), default=0.0)
        if change < 1e-3:
            break
    weights.write()
    return Program(module, program.inputs, program.name, program.dynamic_batch)


def find_pairs(steps: Sequence[QuantStep]) -> list[_Pair]:
    """Layers whose channels one other layer alone reads, with nothing but scaling between."""
    readers: dict[fx.Node, list[QuantStep]] = {}
    weights: dict[fx.Node, int] = {}
    for step in steps:
        for source in step.inputs:
            readers.setdefault(source, []).append(step)
        for held in (step.weight, step.bias):
            if held is not None:
                weights[held] = weights.get(held, 0) + 1
    pairs = []
    for step in steps:
        if step.kind not in LAYERS or step.bounds not in (UNBOUNDED, (0.0, math.inf)):
            continue
        reader = _only_reader(step, readers)
        own = all(weights[h] == 1 for s in (step, reader) if s for h in (s.weight,) if h)
        if reader is not None and own and _fits(step, reader):
            pairs.append(_Pair(step, reader))
    return pairs


def _only_reader(step: QuantStep, readers: Mapping[fx.Node, list[QuantStep]]) -> QuantStep | None:
    """The layer that alone reads a layer's result, through pools, averages and paddings."""
    while True:
        found = readers.get(step.result, [])
        if len(found) != 1 or len(step.result.users) != 1:
            return None
        step = found[0]
        if step.kind in LAYERS:
            return step
        if step.kind not in _LINEAR or step.bounds not in (UNBOUNDED, (0.0, math.inf)):
            return None


def _fits(makes: QuantStep, reads: QuantStep) -> bool:
    """Whether the channels made are those read, one by one (dense or depthwise)."""
    width, sizes = shape(makes.weight)[0], shape(reads.weight)  # type: ignore[arg-type]
    rows = len(shape(makes.result)) in (2, 4)
    return rows and (sizes[1] == width or (sizes[1] == 1 and sizes[0] == width))


class _Weights:
    """The weights of layers in float64, by the node that holds them."""

    def __init__(self, module: fx.GraphModule, steps: Sequence[QuantStep]) -> None:
        self.module = module
        held = {h for s in steps if s.kind in LAYERS for h in (s.weight, s.bias) if h is not None}
        self.tensors: dict[fx.Node, Tensor] = {
            h: get_tensor(module, str(h.target)).detach().double() for h in held
        }

    def balance(self, pair: _Pair) -> float:
        """Scale the channels between two layers; returns the largest factor's logarithm."""
        made, read = self.tensors[pair.makes.weight], self.tensors[pair.reads.weight]  # type: ignore[index]
        depthwise = read.shape[1] == 1 and len(made) != 1
        rest = [d for d in range(read.ndim) if d != (0 if depthwise else 1)]
        first = made.abs().reshape(len(made), -1).amax(1)
        second = read.abs().amax(rest)
        factor = torch.sqrt(first / second).clamp(1 / _LARGEST, _LARGEST)
        factor = torch.where((first > 0) & (second > 0), factor, torch.ones_like(factor))
        self._scale(pair.makes.weight, 1.0 / factor, 0)
        self._scale(pair.makes.bias, 1.0 / factor, 0)
        self._scale(pair.reads.weight, factor, 0 if depthwise else 1)
        return float(factor.log().abs().amax())

    def _scale(self, held: fx.Node | None, factor: Tensor, dim: int) -> None:
        if held is not None:
            tensor = self.tensors[held]
            sizes = [1] * tensor.ndim
            sizes[dim] = -1
            self.tensors[held] = tensor * factor.reshape(sizes)

    def write(self) -> None:
        """Put the weights into the module."""
        for held, tensor in self.tensors.items():
            name = str(held.target)
            kind = get_tensor(self.module, name).dtype
            set_tensor(self.module, name, tensor.to(kind).contiguous())
