"""What every operator of an `IntegerGraph` computes, bit for bit: the meaning of all its kernels.

In: an `IntegerGraph` and inputs of any batch. Out: values by tensor name. Vectorised in NumPy; sums
of products run as float64 matrix products, which are exact here (an accumulator is below 2^31).
Sources beside those of `arithmetic.py`: TensorFlow Lite `kernels/internal/reference/` (conv.h,
integer_ops/, prelu.h, softmax.h, requantize.h), CMSIS-NN `arm_convolve_s8`, `arm_avgpool_s8`,
`arm_elementwise_add_s8`, `arm_softmax_s8`. `Mean` has the division folded into its multiplier, as
newer versions of TensorFlow Lite do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hwprune.errors import HwpruneError
from hwprune.quantize import graph as ops
from hwprune.quantize.arithmetic import (
    doubling_high_mul,
    exp_on_negative,
    one_over_one_plus,
    requantize,
    rounding_divide,
)
from hwprune.quantize.graph import INT8_MAX, INT8_MIN, IntegerGraph, IntegerTensor, Pads, Pair

Array = np.ndarray
Altered = Callable[[ops.Operator, Array], Array]
_SOFTMAX_SUM_BITS = 12  # integer bits of the sum of exponentials


def run(
    graph: IntegerGraph, inputs: Sequence[Array], altered: Altered | None = None
) -> tuple[Array, ...]:
    """The outputs of a graph for inputs of its shapes and types, with any batch."""
    values = run_all(graph, inputs, altered)
    return tuple(values[name] for name in graph.outputs)


def run_all(
    graph: IntegerGraph, inputs: Sequence[Array], altered: Altered | None = None
) -> dict[str, Array]:
    """Every value of a graph by name; `altered` gives what goes on in place of a result.

    Raises HwpruneError for inputs that do not fit.
    """
    if len(inputs) != len(graph.inputs):
        raise HwpruneError(f"the network takes {len(graph.inputs)} inputs, not {len(inputs)}")
    values: dict[str, Array] = {}
    for name, given in zip(graph.inputs, inputs, strict=True):
        wanted = graph.by_name[name]
        if given.shape[1:] != wanted.shape[1:] or given.dtype != wanted.dtype:
            raise HwpruneError(
                f"has shape {given.shape} and type {given.dtype}, the network takes "
                f"(N, {str(wanted.shape[1:])[1:-1]}) of {wanted.dtype}",
                where=f"input {name}",
            )
        values[name] = given
    for operator in graph.operators:
        tensors = [graph.by_name[name] for name in operator.inputs]
        arrays = [values[name] for name in operator.inputs]
        result = execute(operator, arrays, tensors, graph.by_name[operator.output])
        values[operator.output] = result if altered is None else altered(operator, result)
    return values


def execute(
    operator: ops.Operator,
    arrays: Sequence[Array],
    inputs: Sequence[IntegerTensor],
    output: IntegerTensor,
) -> Array:
    """The result of one operator."""
    return _KERNELS[type(operator)](operator, arrays, inputs, output)


def quantize(x: Array, scale: float, zero_point: int) -> Array:
    """int8 of float32 values: halves away from zero, saturated."""
    ratio = (x.astype(np.float32) / np.float32(scale)).astype(np.float64)
    rounded = np.trunc(ratio + np.copysign(0.5, ratio)) + zero_point
    return np.clip(rounded, INT8_MIN, INT8_MAX).astype(np.int8)


def dequantize(q: Array, scale: float, zero_point: int) -> Array:
    """float32 of int8 values."""
    centred = q.astype(np.int32) - np.int32(zero_point)
    result: Array = centred.astype(np.float32) * np.float32(scale)
    return result


def _finish(acc: Array, multiplier: Any, shift: Any, zero_point: int, clamp: Pair) -> Array:
    result = requantize(acc, multiplier, shift) + zero_point
    return np.clip(result, *clamp).astype(np.int8)


def _centred(x: Array, tensor: IntegerTensor) -> Array:
    return x.astype(np.int64) - tensor.zero_point


def _padded(x: Array, padding: Pads, value: float) -> Array:
    top, left, bottom, right = padding
    widths = ((0, 0), (top, bottom), (left, right), (0, 0))
    return np.pad(x, widths, constant_values=value) if any(padding) else x


def _taps(
    x: Array, kernel: Pair, stride: Pair, dilation: Pair
) -> list[tuple[tuple[int, int], Array]]:
    """((row, column), the pixels that this tap of the kernel meets) of a padded image."""
    rows, columns = (
        (size - (k - 1) * d - 1) // s + 1
        for size, k, s, d in zip(x.shape[1:3], kernel, stride, dilation, strict=True)
    )
    found = []
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            bottom, right = top + (rows - 1) * stride[0] + 1, left + (columns - 1) * stride[1] + 1
            found.append(((i, j), x[:, top : bottom : stride[0], left : right : stride[1]]))
    return found


def _conv2d(
    op: ops.Conv2d, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    x = _padded(arrays[0].astype(np.float64) - inputs[0].zero_point, op.padding, 0.0)
    outputs, height, width, depth = op.weight.shape
    weight = op.weight.reshape(op.groups, outputs // op.groups, height, width, depth)
    weight = weight.astype(np.float64).transpose(2, 3, 0, 4, 1)  # (kh, kw, group, in, out)
    acc: Any = 0.0
    for (i, j), pixels in _taps(x, (height, width), op.stride, op.dilation):
        if depth == 1 and outputs == op.groups:
            acc = acc + pixels * weight[i, j, :, 0, 0]
            continue
        grouped = pixels.reshape(*pixels.shape[:3], op.groups, 1, depth)
        acc = acc + (grouped @ weight[i, j]).reshape(*pixels.shape[:3], outputs)
    acc = acc.astype(np.int64) + op.bias
    return _finish(acc, op.multiplier, op.shift, out.zero_point, op.clamp)


def _linear(
    op: ops.Linear, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    x = arrays[0].astype(np.float64) - inputs[0].zero_point
    acc = (x @ op.weight.astype(np.float64).T).astype(np.int64) + op.bias
    return _finish(acc, op.multiplier, op.shift, out.zero_point, op.clamp)


def _add(
    op: ops.Add, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    total: Any = 0
    for i in (0, 1):
        shifted = _centred(arrays[i], inputs[i]) << op.left_shift
        total = total + requantize(shifted, op.multiplier[i], op.shift[i])
    return _finish(total, op.multiplier[2], op.shift[2], out.zero_point, op.clamp)


def _mul(
    op: ops.Mul, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    product = _centred(arrays[0], inputs[0]) * _centred(arrays[1], inputs[1])
    return _finish(product, op.multiplier, op.shift, out.zero_point, op.clamp)


def _max_pool(
    op: ops.MaxPool, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    taps = _taps(_padded(arrays[0], op.padding, INT8_MIN), op.kernel, op.stride, (1, 1))
    result = np.maximum.reduce([pixels for _, pixels in taps])
    return np.clip(result, *op.clamp).astype(np.int8)


def _avg_pool(
    op: ops.AvgPool, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    inside = np.ones((1, *arrays[0].shape[1:3], 1), np.int64)
    total, count = (
        sum(p for _, p in _taps(_padded(x, op.padding, 0), op.kernel, op.stride, (1, 1)))
        for x in (arrays[0].astype(np.int64), inside)
    )
    half = np.asarray(count) // 2
    size = (np.abs(total) + half) // count
    return np.clip(np.sign(total) * size, *op.clamp).astype(np.int8)


def _mean(
    op: ops.Mean, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    total = _centred(arrays[0], inputs[0]).sum((1, 2))
    total = total.reshape(len(total), *out.shape[1:])
    return _finish(total, op.multiplier, op.shift, out.zero_point, op.clamp)


def _concat(
    op: ops.Concat, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    return np.concatenate(arrays, op.axis)


def _pad(
    op: ops.Pad, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    return _padded(arrays[0], op.padding, op.value)


def _reshape(
    op: ops.Reshape, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    return arrays[0].reshape(len(arrays[0]), *out.shape[1:])


def _transpose(
    op: ops.Transpose, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    return np.ascontiguousarray(arrays[0].transpose(op.axes))


def _lookup(
    op: ops.Lookup, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    result: Array = op.table[arrays[0].astype(np.int64) - INT8_MIN]
    return result


def _prelu(
    op: ops.Prelu, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    x = _centred(arrays[0], inputs[0])
    above = requantize(x, op.multiplier[0], op.shift[0])
    below = requantize(x * op.slope, op.multiplier[1], op.shift[1])
    return np.clip(np.where(x >= 0, above, below) + out.zero_point, *op.clamp).astype(np.int8)


def _softmax(
    op: ops.Softmax, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    x = arrays[0].astype(np.int64)
    below = x - x.max(-1, keepdims=True)
    counts = below >= op.diff_min
    scaled = doubling_high_mul(np.where(counts, below, 0) << op.shift, op.multiplier)
    exponentials = exp_on_negative(scaled)
    terms = np.where(counts, rounding_divide(exponentials, _SOFTMAX_SUM_BITS), 0)
    total = terms.sum(-1, keepdims=True)
    headroom = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)  # leading zeros
    scale = one_over_one_plus((total << headroom) - (1 << 31))
    bits = _SOFTMAX_SUM_BITS - headroom + 23
    shares = rounding_divide(doubling_high_mul(scale, exponentials), bits) + INT8_MIN
    shares = np.clip(np.where(counts, shares, INT8_MIN), INT8_MIN, INT8_MAX)
    return shares.astype(np.int8)


def _quantize(
    op: ops.Quantize, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    return quantize(arrays[0], out.scale, out.zero_point)


def _dequantize(
    op: ops.Dequantize, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    return dequantize(arrays[0], inputs[0].scale, inputs[0].zero_point)


def _requantize(
    op: ops.Requantize, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    x = _centred(arrays[0], inputs[0])
    return _finish(x, op.multiplier, op.shift, out.zero_point, op.clamp)


def _float(
    op: ops.Float, arrays: Sequence[Array], inputs: Sequence[IntegerTensor], out: IntegerTensor
) -> Array:
    import torch

    from hwprune.lower.reference import evaluate

    params = [torch.from_numpy(np.ascontiguousarray(p)) for p in op.params]
    sizes = [spec.shape[0] for spec in op.workload.inputs]  # of a batch of one
    made = []
    with torch.no_grad():
        for i in range(len(arrays[0]) // sizes[0]):
            pairs = zip(arrays, sizes, strict=True)
            one = [torch.from_numpy(np.ascontiguousarray(a[i * n : (i + 1) * n])) for a, n in pairs]
            made.append(evaluate(op.workload, one, params).contiguous().numpy())
    return np.concatenate(made)


_KERNELS: dict[type[ops.Operator], Callable[..., Array]] = {
    ops.Conv2d: _conv2d,
    ops.Linear: _linear,
    ops.Add: _add,
    ops.Mul: _mul,
    ops.MaxPool: _max_pool,
    ops.AvgPool: _avg_pool,
    ops.Mean: _mean,
    ops.Concat: _concat,
    ops.Pad: _pad,
    ops.Reshape: _reshape,
    ops.Transpose: _transpose,
    ops.Lookup: _lookup,
    ops.Prelu: _prelu,
    ops.Softmax: _softmax,
    ops.Quantize: _quantize,
    ops.Dequantize: _dequantize,
    ops.Requantize: _requantize,
    ops.Float: _float,
}
