"""Bias correction: every channel's bias takes the mean error that rounding gives it.

Rounded weights and inputs shift the mean of a layer's outputs. The shift is measured on calibration
data, layer by layer in network order, with the layers before already corrected (Nagel et al.,
Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.2, with
data as in its appendix D).

In: a folded program, its steps and the scheme. Out: the same program with other biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from hwprune.lower.functional import get_tensor, set_tensor
from hwprune.program import Program
from hwprune.quantize.scheme import Scheme
from hwprune.quantize.simulate import own_graph, simulate
from hwprune.quantize.steps import LAYERS, QuantStep
from hwprune.recover.sweep import sweep


def correct_biases(
    program: Program, steps: Sequence[QuantStep], scheme: Scheme, batches: Sequence[Tensor]
) -> Program:
    """The program with corrected biases; layers without one, or with a shared one, keep theirs."""
    biases = [s.bias for s in steps if s.kind in LAYERS and s.bias is not None]
    layers = {
        step.node.name: str(step.bias.target)
        for step in steps
        if step.kind in LAYERS and step.bias is not None and biases.count(step.bias) == 1
    }
    inputs = [(batch,) for batch in batches]
    means: dict[str, Tensor] = {}

    def remember(node: fx.Node, values: list[Any]) -> None:
        if node.name in layers:
            means[node.name] = _mean(values)

    sweep(program.module, inputs, after=remember)
    module = own_graph(program)

    def correct(node: fx.Node, values: list[Any]) -> None:
        if node.name not in layers:
            return
        error = (means[node.name] - _mean(values)).float()
        bias = get_tensor(module, layers[node.name])
        set_tensor(module, layers[node.name], bias.detach() + error)
        for value in values:
            value.add_(error.reshape(-1, 1, 1) if value.ndim == 4 else error)

    sweep(simulate(program, steps, scheme), inputs, after=correct)
    return Program(module, program.inputs, program.name, program.dynamic_batch)


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Mean of every channel over all batches, float64 (C,)."""
    channel = 1 if values[0].ndim == 4 else values[0].ndim - 1
    dims = [d for d in range(values[0].ndim) if d != channel]
    total = torch.stack([value.double().sum(dims) for value in values]).sum(0)
    return total / sum(value.numel() // value.shape[channel] for value in values)
