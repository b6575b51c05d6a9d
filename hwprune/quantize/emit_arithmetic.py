"""Steps that multiply and add -> operators with multipliers: layers, sums, means, softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwprune.errors import LoweringError
from hwprune.lower.functional import place
from hwprune.lower.root import shape
from hwprune.quantize import graph as ops
from hwprune.quantize.arithmetic import (
    SOFTMAX_LIMIT,
    softmax_constants,
)
from hwprune.quantize.emitter import SPAN, Emitter, clamp_of, multiplier_of
from hwprune.quantize.graph import INT8_MAX
from hwprune.quantize.placement import NHWC, plain, usual
from hwprune.quantize.simulate import slope_scale
from hwprune.quantize.steps import QuantStep
from hwprune.quantize.weights import integer_weights

_LEFT_SHIFT = 20  # of the operands of a sum


def layer(e: Emitter, step: QuantStep) -> None:
    """A convolution or linear layer."""
    order = NHWC if step.kind == "conv2d" else plain(len(shape(step.result)))
    x = e.at.read(step.inputs[0], order)
    bias = None if step.bias is None else e.tensor(step.bias)
    weight = e.tensor(step.weight)
    if step.inputs[0] in e.columns:
        weight = weight[:, torch.from_numpy(e.columns[step.inputs[0]])]
    groups = 1
    if step.kind == "conv2d":
        groups = shape(step.inputs[0])[1] // weight.shape[1]
        weight = weight.permute(0, 2, 3, 1)
    _weighted(e, step, x, weight.contiguous(), bias, groups)


def affine(e: Emitter, step: QuantStep) -> None:
    """Channels scaled and shifted: a depthwise 1x1 convolution."""
    x = e.at.read(step.inputs[0], NHWC)
    scale, shift = e.tensor(step.weight), e.tensor(step.bias)
    _weighted(e, step, x, scale.reshape(-1, 1, 1, 1), shift, len(scale))


def _weighted(
    e: Emitter, step: QuantStep, x: str, weight: Tensor, bias: Tensor | None, groups: int
) -> None:
    result = e.of(step.result)
    done = integer_weights(weight, bias, e.of(step.inputs[0]), result, place(step.node))
    fields: dict[str, Any] = {
        "weight": done.weight, "bias": done.bias, "multiplier": done.multiplier,
        "shift": done.shift, "clamp": clamp_of(step, result),
    }  # fmt: skip
    if step.kind == "linear":
        out = e.at.put(step.result, plain(len(shape(step.result))))
        e.at.emit(ops.Linear, step.node, (x,), out, **fields)
        return
    where = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1)} | dict(step.attrs)
    out = e.at.put(step.result, NHWC)
    e.at.emit(ops.Conv2d, step.node, (x,), out, groups=groups, **where, **fields)


def add(e: Emitter, step: QuantStep) -> None:
    """A sum, as `ops.Add` says (ADD of TensorFlow Lite)."""
    order = e.at.order(step.inputs[0])
    names = [e.at.read(v, order) for v in step.inputs]
    scales = [e.of(v).scale for v in step.inputs]
    result, widest = e.of(step.result), 2.0 * max(scales)
    reals = [s / widest for s in scales] + [widest / ((1 << _LEFT_SHIFT) * result.scale)]
    reach = float(SPAN << _LEFT_SHIFT)
    pairs = [multiplier_of(real, reach, step) for real in reals]
    multiplier, shift = zip(*pairs, strict=True)
    e.at.emit(
        ops.Add, step.node, names, e.at.put(step.result, order), multiplier=multiplier,
        shift=shift, clamp=clamp_of(step, result), left_shift=_LEFT_SHIFT,
    )  # fmt: skip


def mul(e: Emitter, step: QuantStep) -> None:
    """A product."""
    order = e.at.order(step.inputs[0])
    names = [e.at.read(v, order) for v in step.inputs]
    first, second, result = (e.of(v) for v in (*step.inputs, step.result))
    real = first.scale * second.scale / result.scale
    _scaled(e, step, ops.Mul, names, order, real, SPAN**2)


def mean(e: Emitter, step: QuantStep) -> None:
    """The mean of every channel of an image."""
    x = e.at.read(step.inputs[0], NHWC)
    count = int(np.prod(shape(step.inputs[0])[2:]))
    real = e.of(step.inputs[0]).scale / (count * e.of(step.result).scale)
    _scaled(e, step, ops.Mean, [x], usual(len(shape(step.result))), real, SPAN * count)


def _scaled(
    e: Emitter,
    step: QuantStep,
    kind: type[ops.Operator],
    names: Sequence[str],
    order: tuple[int, ...],
    real: float,
    reach: float,
) -> None:
    """An operator with one multiplier."""
    multiplier, shift = multiplier_of(real, reach, step)
    clamp = clamp_of(step, e.of(step.result))
    out = e.at.put(step.result, order)
    e.at.emit(kind, step.node, names, out, multiplier=multiplier, shift=shift, clamp=clamp)


def prelu(e: Emitter, step: QuantStep) -> None:
    """A slope for every channel."""
    order = usual(len(shape(step.result)))
    x = e.at.read(step.inputs[0], order)
    slope = e.tensor(step.weight)
    unit = slope_scale(slope)
    integers = torch.round(slope / unit).clamp(-INT8_MAX, INT8_MAX).to(torch.int8).numpy()
    source, result = e.of(step.inputs[0]), e.of(step.result)
    above = multiplier_of(source.scale / result.scale, SPAN, step)
    below = multiplier_of(source.scale * unit / result.scale, SPAN * INT8_MAX, step)
    multiplier, shift = zip(above, below, strict=True)
    e.at.emit(
        ops.Prelu, step.node, (x,), e.at.put(step.result, order), slope=integers,
        multiplier=multiplier, shift=shift, clamp=clamp_of(step, result),
    )  # fmt: skip


def softmax(e: Emitter, step: QuantStep) -> None:
    """Raises LoweringError for rows too long for the integer algorithm."""
    order = plain(len(shape(step.result)))
    if shape(step.result)[-1] > SOFTMAX_LIMIT:
        raise LoweringError(
            f"no int8 kernel for a softmax of more than {SOFTMAX_LIMIT} values",
            where=place(step.node),
            hint="leave it out: it changes no order of the logits",
        )
    x = e.at.read(step.inputs[0], order)
    multiplier, shift, diff_min = softmax_constants(e.of(step.inputs[0]).scale)
    fields = {"multiplier": multiplier, "shift": shift, "diff_min": diff_min}
    e.at.emit(ops.Softmax, step.node, (x,), e.at.put(step.result, order), **fields)
