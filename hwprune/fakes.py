"""Fake tensors for whole graphs: what calls yield, without computing it.

In: a call's target and arguments. Out: fake tensors of the same shapes and dtypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_aggregate


class Fakes:
    """Fake tensors; a call that was made before on the same ones is not made again.

    Networks repeat their blocks, and a call on fake tensors costs milliseconds.
    """

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._known: dict[Any, Any] = {}

    def like(self, value: Any) -> Any:
        """The fake of a tensor; anything else as it is."""
        if not isinstance(value, Tensor):
            return value
        key = (type(value), value.shape, value.stride(), value.dtype, value.device)
        if (*key, value.requires_grad) not in self._known:
            self._known[(*key, value.requires_grad)] = self._mode.from_tensor(value)
        return self._known[(*key, value.requires_grad)]

    def empty(
        self,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        """The fake of a tensor that looks like this."""
        key = ("empty", shape, stride, dtype, device)
        if key not in self._known:
            with self._mode:
                made = torch.empty_strided(shape, stride, dtype=dtype, device=device)
            self._known[key] = made
        found: Tensor = self._known[key]
        return found

    def call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """What a call yields on fake tensors."""
        args = fx.map_arg(node.args, lambda n: values[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: values[n])
        if node.target is torch.ops.aten.batch_norm.default:  # its decomposition is slow
            return args[0]
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:  # may change the shape of what is shared
            with self._mode, torch.no_grad():
                args = map_aggregate(args, _copied)
        try:
            key = (node.target, _frozen(args), _frozen(kwargs))
        except TypeError:
            return self._run(node.target, args, kwargs)
        if key not in self._known:
            # The arguments are kept: a key holds their identities.
            self._known[key] = (self._run(node.target, args, kwargs), args, kwargs)
        return self._known[key][0]

    def _run(self, target: Any, args: Any, kwargs: Any) -> Any:
        with self._mode, torch.no_grad():
            return target(*args, **kwargs)


def run_fake(
    graph: fx.Graph, attributes: Mapping[fx.Node, Any], inputs: tuple[Tensor, ...]
) -> dict[fx.Node, Any]:
    """What every node yields for inputs of these sizes; `attributes` is what `get_attr`s hold."""
    fakes = Fakes()
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in graph.nodes:
        if node.op == "output":
            break
        if node.op == "placeholder":
            values[node] = fakes.like(next(given))
        elif node.op == "get_attr":
            values[node] = fakes.like(attributes[node])
        else:
            values[node] = fakes.call(node, values)
    return values


def _copied(value: Any) -> Any:
    return torch.empty_like(value) if isinstance(value, Tensor) else value


def _frozen(value: Any) -> Any:
    """A hashable stand-in for an argument: tensors by identity. Raises TypeError for others."""
    if isinstance(value, Tensor):
        return id(value)
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in sorted(value.items()))
    if isinstance(value, int | float | bool | str | torch.dtype | torch.device | None):
        return type(value), value
    if isinstance(value, torch.layout | torch.memory_format):
        return value
    raise TypeError
