"""Convolutions and linears as linear regressions: sampled patches in, sampled outputs out.

Patches of a few thousand output positions stand for all of them: neighbouring positions say
nearly the same, and the normal equations need no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

aten = torch.ops.aten
_CONVS = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}
_ADDS = (aten.add.Tensor, aten.add_.Tensor)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear node: y = weight . patch + bias, per group.

    `weight` and `bias` are the dotted parameter names; `absorb` names the running mean of the
    batch norm that is the layer's only user, which takes an offset where there is no bias.
    `shortcut` is what is added to the layer (after that batch norm, if any), where it was
    computed before the layer: its error can be made good here.
    """

    node: fx.Node
    weight: str
    bias: str | None
    absorb: str | None
    shortcut: fx.Node | None = None
    groups: int = 1
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    @property
    def spatial(self) -> int:
        """How many spatial dimensions: 0 for a linear layer."""
        return len(self.stride)


def all_layers(graph: fx.Graph) -> list[Layer]:
    """The convolutions and linears whose weights are parameters, in execution order."""
    return [layer for node in graph.nodes if (layer := _layer(node)) is not None]


def layers_of(graph: fx.Graph) -> list[Layer]:
    """The layers that can be reconstructed, in execution order; shared weights are left out."""
    found = all_layers(graph)
    uses: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            uses[str(node.target)] = uses.get(str(node.target), 0) + len(node.users)
    return [
        layer
        for layer in found
        if all(uses[name] == 1 for name in (layer.weight, layer.bias, layer.absorb) if name)
    ]


def _layer(node: fx.Node) -> Layer | None:
    if node.op != "call_function" or not (
        node.target in _CONVS or node.target is aten.linear.default
    ):
        return None
    weight, bias = _argument(node, 1, "weight"), _argument(node, 2, "bias")
    if not _is_attribute(weight) or not (bias is None or _is_attribute(bias)):
        return None
    bias_name = None if bias is None else str(bias.target)
    names = (str(weight.target), bias_name, _absorbing(node), _shortcut(node))
    if node.target is aten.linear.default:
        return Layer(node, *names)
    dims = _CONVS[node.target]
    stride, padding, dilation = (
        _tuple(_argument(node, i, name, default), dims)
        for i, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    groups = int(_argument(node, 6, "groups", 1))
    return Layer(node, *names, groups, stride, padding, dilation)


def _absorbing(node: fx.Node) -> str | None:
    norm = batch_norm_after(node)
    mean: Any = None if norm is None else norm.args[3]
    return str(mean.target) if _is_attribute(mean) else None


def batch_norm_after(node: fx.Node) -> fx.Node | None:
    """The batch norm that is the node's only user, if that is so."""
    users = list(node.users)
    single = len(users) == 1 and users[0].target is aten.batch_norm.default
    return users[0] if single and users[0].args[0] is node else None


def _shortcut(node: fx.Node) -> fx.Node | None:
    last = batch_norm_after(node) or node
    users = list(last.users)
    if len(users) != 1 or users[0].target not in _ADDS or users[0].kwargs:
        return None
    others = [a for a in users[0].args if a is not last]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    same = _shape(others[0]) is not None and _shape(others[0]) == _shape(last)
    return others[0] if same and others[0] < node else None


def _shape(node: fx.Node) -> list[str] | None:
    value = node.meta.get("val")
    return [str(size) for size in value.shape] if isinstance(value, Tensor) else None


def _argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def _is_attribute(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * dims if len(values) == 1 else values)


def positions(layer: Layer, output: tuple[int, ...], count: int, seed: int) -> np.ndarray:
    """`count` (or all) positions of an output of this shape: (samples, 1 + spatial) indices.

    A linear layer's positions run over all dimensions but the last.
    """
    shape = (output[0], *output[2:]) if layer.spatial else output[:-1]
    total = int(np.prod(shape))
    if count < total:
        flat = np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
    else:
        flat = np.arange(total)
    return np.stack(np.unravel_index(flat, shape), axis=1)


def outputs_at(layer: Layer, value: Tensor, at: np.ndarray) -> Tensor:
    """The layer's outputs at these positions: (samples, channels)."""
    where: list[Any] = [torch.from_numpy(column) for column in at.T]
    if layer.spatial:
        return value[(where[0], slice(None), *where[1:])]
    return value[tuple(where)]


def patches_at(layer: Layer, value: Tensor, weight: Tensor, at: np.ndarray) -> Tensor:
    """What the layer reads for these positions: (groups, samples, inputs of a group x taps).

    The last axis runs as `weight.flatten(1)` does.
    """
    if not layer.spatial:
        return value[tuple(torch.from_numpy(column) for column in at.T)].unsqueeze(0)
    pad = [p for axis in reversed(layer.padding) for p in (axis, axis)]
    padded = torch.nn.functional.pad(value, pad) if any(pad) else value
    taps = []
    for tap in np.ndindex(*weight.shape[2:]):
        corner: list[Any] = [
            torch.from_numpy(at[:, 1 + d] * layer.stride[d] + tap[d] * layer.dilation[d])
            for d in range(layer.spatial)
        ]
        taps.append(padded[(torch.from_numpy(at[:, 0]), slice(None), *corner)])
    columns = torch.stack(taps, dim=-1)  # (samples, channels, taps)
    grouped = columns.reshape(len(at), layer.groups, -1)
    return grouped.transpose(0, 1)
