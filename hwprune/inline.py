"""Regions that torch.export sets apart are put back into the graph that they were cut from.

In: a graph module of torch.export. Code under `torch.no_grad` or a disabled `torch.autocast`, as
rotary embeddings have it, becomes plain operators: every later stage sees one flat graph.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

_GRAD, _AUTOCAST = "wrap_with_set_grad_enabled", "wrap_with_autocast"


def inline_regions(module: fx.GraphModule) -> None:
    """Inline every region without gradients or with autocast disabled, also nested ones."""
    while regions := [n for n in module.graph.nodes if _is_plain_region(n)]:
        for node in regions:
            _inline(module, node)
    module.delete_all_unused_submodules()


def _name(node: fx.Node) -> str:
    target = node.target
    return target._name if isinstance(target, torch._ops.HigherOrderOperator) else ""


def _is_plain_region(node: fx.Node) -> bool:
    return _name(node) == _GRAD or (_name(node) == _AUTOCAST and not node.args[2])


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    """Copy the region's nodes to where it is called; without gradients its results are detached."""
    first = 1 if _name(node) == _GRAD else 4
    source: Any = node.args[first]
    region = module.get_submodule(str(source.target))
    assert isinstance(region, fx.GraphModule)
    places = [n for n in region.graph.nodes if n.op == "placeholder"]
    values: dict[fx.Node, Any] = dict(zip(places, node.args[first + 1 :], strict=True))
    with module.graph.inserting_before(node):
        for inner in region.graph.nodes:
            if inner.op == "get_attr":
                name = f"{source.target}_{inner.target}".replace(".", "_")
                setattr(module, name, getattr(region, str(inner.target)))
                values[inner] = module.graph.get_attr(name)
                values[inner].meta.update(inner.meta)
            elif inner.op not in ("placeholder", "output"):
                values[inner] = module.graph.node_copy(inner, lambda n: values[n])
        listed: Any = region.graph.output_node().args[0]
        results = [values[n] if isinstance(n, fx.Node) else n for n in listed]
        if _name(node) == _GRAD and not node.args[0]:
            results = [_detached(module, r) for r in results]
    for user in list(node.users):
        assert user.target is operator.getitem
        position: Any = user.args[1]
        user.replace_all_uses_with(results[position])
        module.graph.erase_node(user)
    module.graph.erase_node(node)


def _detached(module: fx.GraphModule, value: Any) -> Any:
    known = value.meta.get("val") if isinstance(value, fx.Node) else None
    if not isinstance(known, Tensor) or not known.is_floating_point():
        return value
    made = module.graph.call_function(torch.ops.aten.detach.default, (value,))
    made.meta.update(value.meta)
    return made
