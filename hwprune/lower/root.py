"""`Root`: the main operation of a kernel as found in the graph, before its layouts are decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from hwprune.lower.spec import Attr


@dataclass(frozen=True)
class Root:
    """The main operation of a kernel: tensor inputs, then weight (and bias) as graph nodes."""

    op: str
    inputs: tuple[fx.Node, ...]
    attrs: dict[str, Attr] = field(default_factory=dict)
    weight: fx.Node | None = None
    bias: fx.Node | None = None
    nodes: tuple[fx.Node, ...] = ()  # graph nodes computed besides the root itself


def shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's tensor, as plain integers."""
    return tuple(int(s) for s in node.meta["val"].shape)


def is_parameter(node: Any) -> bool:
    """Whether an argument is a parameter, buffer or constant of the module."""
    return isinstance(node, fx.Node) and node.op == "get_attr"
