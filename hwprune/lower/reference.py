"""What every `Workload` computes, in torch: the meaning that all kernels are held to.

Used to build fallback kernels (through torch.export and TVM's importer) and to test schedules.
`evaluate` works on logical tensors; `ReferenceModule` on tensors as they lie in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hwprune.errors import LoweringError
from hwprune.lower.expansion import EXPAND_DEPTHWISE, parts
from hwprune.lower.packing import pack, unpack
from hwprune.lower.spec import (
    NHWC,
    PACKED,
    Step,
    Workload,
)

_UNARY: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "clamp": lambda x, low, high: torch.clamp(x, low, high),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "leaky_relu": lambda x, slope: F.leaky_relu(x, slope),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "elu": lambda x, alpha: F.elu(x, alpha),
}
_BINARY: dict[str, Callable[..., Tensor]] = {"add": torch.add, "sub": torch.sub, "mul": torch.mul}


class ReferenceModule(nn.Module):
    """A workload as a module: physical inputs, then logical parameters -> the physical output."""

    def __init__(self, workload: Workload, lanes: int) -> None:
        super().__init__()
        self.workload, self.lanes = workload, lanes

    def forward(self, *tensors: Tensor) -> Tensor:
        """Unpack, evaluate, pack."""
        count = len(self.workload.inputs)
        specs = self.workload.inputs
        inputs = [unpack(t, s) for t, s in zip(tensors[:count], specs, strict=True)]
        result = evaluate(self.workload, inputs, tensors[count:])
        return pack(result, self.workload.output, self.lanes)


def evaluate(workload: Workload, inputs: Sequence[Tensor], params: Sequence[Tensor]) -> Tensor:
    """The logical output of a workload on logical inputs and parameters."""
    values, weights = iter(inputs), iter(params)
    running = _MAIN[workload.op](workload, values, weights)
    for step in workload.epilogue:
        running = _apply(step, running, workload, values, weights)
    return running


def _apply(
    step: Step, x: Tensor, workload: Workload, inputs: Iterator[Tensor], params: Iterator[Tensor]
) -> Tensor:
    last = workload.op == "layer_norm" or (workload.op == "linear" and not _flips(workload))
    axis = 1 if x.ndim == 4 and not last else x.ndim - 1
    shape = [1] * x.ndim
    shape[axis] = -1
    if step.op == "bias":
        return x + next(params).reshape(shape)
    if step.op == "affine":
        scale = next(params).reshape(shape)
        return x * scale + next(params).reshape(shape)
    if step.op == "prelu":
        return torch.where(x > 0, x, x * next(params).reshape(shape))
    if step.op in _BINARY:
        return _BINARY[step.op](x, next(inputs))
    if step.op not in _UNARY:
        raise LoweringError(f"unknown epilogue step {step.op!r}")
    return _UNARY[step.op](x, *step.args)


def _conv2d(workload: Workload, inputs: Iterator[Tensor], params: Iterator[Tensor]) -> Tensor:
    x, weight = next(inputs), next(params)
    top, left, bottom, right = workload.attr("padding")
    stride, dilation = list(workload.attr("stride")), list(workload.attr("dilation"))
    groups = x.shape[1] // weight.shape[1]
    if (top, left) == (bottom, right):
        return F.conv2d(x, weight, None, stride, [top, left], dilation, groups)
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, None, stride, 0, dilation, groups)


def _expand_depthwise(
    workload: Workload, inputs: Iterator[Tensor], params: Iterator[Tensor]
) -> Tensor:
    expand, depthwise = parts(workload)
    weights = [next(params) for _ in expand.params]
    return _conv2d(depthwise, iter([evaluate(expand, [next(inputs)], weights)]), params)


def _linear(workload: Workload, inputs: Iterator[Tensor], params: Iterator[Tensor]) -> Tensor:
    result = F.linear(next(inputs), next(params))
    return result.permute(0, 3, 1, 2) if _flips(workload) else result


def _flips(workload: Workload) -> bool:
    """Whether a linear layer of pixels yields its channels at axis 1."""
    return workload.op == "linear" and workload.output.layout in (PACKED, NHWC)


def _matmul(workload: Workload, inputs: Iterator[Tensor], params: Iterator[Tensor]) -> Tensor:
    return torch.matmul(next(inputs), next(inputs))


def _layer_norm(workload: Workload, inputs: Iterator[Tensor], params: Iterator[Tensor]) -> Tensor:
    x = next(inputs)
    return F.layer_norm(x, x.shape[-1:], next(params), None, workload.attr("eps"))


def _softmax(workload: Workload, inputs: Iterator[Tensor], _: Iterator[Tensor]) -> Tensor:
    return torch.softmax(next(inputs), -1)


def _attention(workload: Workload, inputs: Iterator[Tensor], _: Iterator[Tensor]) -> Tensor:
    q, k, v, *masks = inputs
    scores = q @ k.transpose(-2, -1) * workload.attr("scale")
    for mask in masks:
        scores = scores + mask.reshape(mask.shape[-4:])
    if workload.attr("causal"):
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    return torch.softmax(scores, -1) @ v


def _max_pool2d(workload: Workload, inputs: Iterator[Tensor], params: Iterator[Tensor]) -> Tensor:
    top, left, bottom, right = workload.attr("padding")
    x = F.pad(next(inputs), (left, right, top, bottom), value=-3.4e38)
    kernel, stride = list(workload.attr("kernel")), list(workload.attr("stride"))
    return F.max_pool2d(x, kernel, stride, 0, list(workload.attr("dilation")))


def _avg_pool2d(workload: Workload, inputs: Iterator[Tensor], params: Iterator[Tensor]) -> Tensor:
    x = next(inputs)
    top, left, bottom, right = workload.attr("padding")
    kernel, stride = list(workload.attr("kernel")), list(workload.attr("stride"))
    padded = F.pad(x, (left, right, top, bottom))
    area = kernel[0] * kernel[1]
    mean = F.avg_pool2d(padded, kernel, stride)
    if workload.attr("divisor"):
        return mean * (area / workload.attr("divisor"))
    if workload.attr("count_include_pad") or not (top or left or bottom or right):
        return mean
    inside = F.pad(torch.ones_like(x[:1, :1]), (left, right, top, bottom))
    return mean / F.avg_pool2d(inside, kernel, stride)


def _global_avg_pool(workload: Workload, inputs: Iterator[Tensor], _: Iterator[Tensor]) -> Tensor:
    return next(inputs).mean((2, 3), keepdim=len(workload.output.shape) == 4)


def _concat(workload: Workload, inputs: Iterator[Tensor], params: Iterator[Tensor]) -> Tensor:
    count = len(workload.inputs) - sum(s.op in _BINARY for s in workload.epilogue)
    return torch.cat([next(inputs) for _ in range(count)], dim=workload.attr("axis"))


def _slice(workload: Workload, inputs: Iterator[Tensor], params: Iterator[Tensor]) -> Tensor:
    start, stop, step = (workload.attr(k) for k in ("start", "stop", "step"))
    return torch.ops.aten.slice.Tensor(next(inputs), workload.attr("axis"), start, stop, step)


def _roll(workload: Workload, inputs: Iterator[Tensor], params: Iterator[Tensor]) -> Tensor:
    return torch.roll(next(inputs), workload.attr("shifts"), workload.attr("axes"))


def _shuffle(workload: Workload, inputs: Iterator[Tensor], params: Iterator[Tensor]) -> Tensor:
    return F.channel_shuffle(next(inputs), workload.attr("groups"))


def _first(workload: Workload, inputs: Iterator[Tensor], params: Iterator[Tensor]) -> Tensor:
    return next(inputs)


def _aten(workload: Workload, inputs: Iterator[Tensor], params: Iterator[Tensor]) -> Tensor:
    function = resolve(workload.attr("target"))
    given, constants = list(inputs), list(params)
    raw = json.loads(workload.attr("args"))
    args, kwargs = _decode([raw["args"], raw["kwargs"]], given, constants)
    result = function(*args, **kwargs)
    item = dict(workload.attrs).get("item")
    return result if item is None else result[item]


def resolve(name: str) -> Callable[..., Any]:
    """The ATen overload of a name like "aten.roll.default"; LoweringError if there is none."""
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.rpartition(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)  # type: ignore[no-any-return]
    except AttributeError:
        raise LoweringError(f"no operator {name}") from None


def encode(value: Any, tensor: Callable[[Any], dict[str, int] | None]) -> Any:
    """An ATen argument as JSON data; `tensor` gives {"input": i} / {"param": i} for nodes."""
    reference = tensor(value)
    if reference is not None:
        return reference
    if isinstance(value, list | tuple):
        return [encode(v, tensor) for v in value]
    if isinstance(value, dict):
        return {str(k): encode(v, tensor) for k, v in value.items()}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device | torch.layout | torch.memory_format):
        return None
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return {"float": str(value)}
    if isinstance(value, int | float | bool | str | None):
        return value
    raise LoweringError(f"cannot express the argument {value!r}")


def _decode(value: Any, inputs: list[Tensor], params: list[Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(v, inputs, params) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, content),) = value.items()
        if kind in ("input", "param"):
            return (inputs if kind == "input" else params)[content]
        if kind == "dtype":
            return getattr(torch, content)
        if kind == "float":
            return float(content)
    return {k: _decode(v, inputs, params) for k, v in value.items()}


_MAIN: dict[str, Callable[[Workload, Iterator[Tensor], Iterator[Tensor]], Tensor]] = {
    "conv2d": _conv2d,
    EXPAND_DEPTHWISE: _expand_depthwise,
    "linear": _linear,
    "matmul": _matmul,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "attention": _attention,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "global_avg_pool": _global_avg_pool,
    "elementwise": _first,
    "concat": _concat,
    "slice": _slice,
    "roll": _roll,
    "shuffle": _shuffle,
    "layout": _first,
    "aten": _aten,
}
