"""Multiply-accumulates of a kernel, from its shapes alone."""

from __future__ import annotations

import json
from math import prod

from hwprune.lower.expansion import EXPAND_DEPTHWISE, parts
from hwprune.lower.spec import Workload


def macs(workload: Workload) -> int:
    """Multiply-accumulates of a kernel; 0 for one that has no contraction."""
    if workload.op in ("conv2d", "linear"):
        return prod(workload.output.shape) * prod(workload.params[0].shape[1:])
    if workload.op == EXPAND_DEPTHWISE:
        return sum(map(macs, parts(workload)))
    if workload.op == "matmul":
        return prod(workload.output.shape) * workload.inputs[0].shape[-1]
    if workload.op == "attention":
        queries, keys = workload.inputs[0].shape, workload.inputs[1].shape
        return (prod(queries) + prod(workload.output.shape)) * keys[-2]
    if workload.op == "aten":
        return _aten(workload)
    return 0


def _aten(workload: Workload) -> int:
    """Of the contractions that reach the fallback: the reduced sizes times the output's."""
    packet = str(workload.attr("target")).split(".")[1]
    arguments = json.loads(workload.attr("args"))["args"]
    shapes = [_shape(workload, argument) for argument in arguments]
    output = prod(workload.output.shape)
    if packet in ("conv1d", "conv2d", "conv3d"):
        return output * prod(shapes[1][1:])
    if packet.startswith("conv_transpose"):
        return prod(shapes[0]) * prod(shapes[1][1:])
    if packet == "convolution":
        transposed = bool(arguments[6])
        return (prod(shapes[0]) if transposed else output) * prod(shapes[1][1:])
    if packet in ("matmul", "mm", "bmm", "mv", "linear"):
        return output * shapes[0][-1]
    if packet in ("addmm", "baddbmm"):
        return output * shapes[1][-1]
    if packet == "scaled_dot_product_attention":
        queries, keys = shapes[0], shapes[1]
        return prod(queries) * keys[-2] + output * keys[-2]
    return 0


def _shape(workload: Workload, argument: object) -> tuple[int, ...]:
    if isinstance(argument, dict) and "input" in argument:
        return workload.inputs[argument["input"]].shape
    if isinstance(argument, dict) and "param" in argument:
        return workload.params[argument["param"]].shape
    return ()
