"""Run a graph node by node over *all* batches at once, so that a node can be corrected in between.

A layer must be corrected on what the already corrected network feeds it. Advancing every
batch together needs one pass for the whole network; only values still to be used are held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from hwprune.capture import Program
from hwprune.errors import ModelError

PARTS = 10  # batches: a fifth of them can judge what the others fit
Before = Callable[[fx.Node, Callable[[Any], list[Any]]], None]
After = Callable[[fx.Node, list[Any]], None]


def sweep(
    module: fx.GraphModule,
    batches: Sequence[tuple[Tensor, ...]],
    *,
    before: Before | None = None,
    after: After | None = None,
) -> list[Any]:
    """Evaluate `module` on every batch, advancing all batches by one node at a time.

    `before(node, fetch)` runs ahead of each call node; `fetch(argument)` gives the values of
    one of its arguments, one per batch, and parameters changed in place take effect at once.
    `after(node, values)` sees the results. Returns the output per batch.
    """
    environments: list[dict[fx.Node, Any]] = [{} for _ in batches]
    inputs = [iter(batch) for batch in batches]
    dying = _last_uses(module.graph)
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "output":
                return [_value(node.args[0], e) for e in environments]
            if node.op not in ("placeholder", "get_attr") and before is not None:
                before(node, lambda argument: [_value(argument, e) for e in environments])
            for environment, arguments in zip(environments, inputs, strict=True):
                environment[node] = _run(module, node, environment, arguments)
            if node.op not in ("placeholder", "get_attr") and after is not None:
                after(node, [e[node] for e in environments])
            for dead in dying.get(node, ()):
                for environment in environments:
                    del environment[dead]
    raise ModelError("the graph has no output")


def as_batches(
    batches: Iterable[Tensor | Sequence[Tensor]], program: Program
) -> list[tuple[Tensor, ...]]:
    """Batches as tuples of inputs, cut to the program's batch size where that is static.

    Labels are not inputs: pass images only. Raises ModelError where shapes do not fit.
    """
    tuples = [(b,) if isinstance(b, Tensor) else tuple(b) for b in batches]
    if not tuples:
        raise ModelError("no images to recover from", hint="give at least one batch")
    for batch in tuples:
        shapes = [tuple(x.shape[1:]) for x in batch]
        wanted = [tuple(x.shape[1:]) for x in program.inputs]
        if shapes != wanted:
            raise ModelError(f"the images have shapes {shapes}, the model takes {wanted}")
    if program.dynamic_batch:
        return tuples
    size = program.inputs[0].shape[0]
    cut = [
        tuple(x[i : i + size] for x in batch)
        for batch in tuples
        for i in range(0, len(batch[0]) - size + 1, size)
    ]
    if not cut:
        raise ModelError(f"the model takes batches of {size} only, and no batch is that large")
    return cut


def divided(
    batches: Sequence[tuple[Tensor, ...]], program: Program, least: int = PARTS
) -> Sequence[tuple[Tensor, ...]]:
    """The same inputs in `least` or more batches, as far as there are as many.

    They stay as they are where the batch size is static, or inputs differ in length.
    """
    alike = all(len(x) == len(batch[0]) for batch in batches for x in batch)
    if len(batches) >= least or not program.dynamic_batch or not alike:
        return batches
    whole = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    size = max(1, len(whole[0]) // least)
    return list(zip(*(x.split(size) for x in whole), strict=True))


def attribute(module: fx.GraphModule, argument: Any) -> Tensor | None:
    """The parameter or buffer that a graph argument names, None where it is none."""
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    value = _get(module, str(argument.target))
    return value if isinstance(value, Tensor) else None


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    seen: set[fx.Node] = set()
    dying: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(graph.nodes):
        for used in (*node.all_input_nodes, node):
            if used not in seen:
                seen.add(used)
                dying.setdefault(node, []).append(used)
    return dying


def _value(argument: Any, environment: dict[fx.Node, Any]) -> Any:
    return fx.node.map_arg(argument, lambda n: environment[n])


def _run(
    module: fx.GraphModule, node: fx.Node, environment: dict[fx.Node, Any], inputs: Any
) -> Any:
    if node.op == "placeholder":
        return next(inputs)
    if node.op == "get_attr":
        return _get(module, str(node.target))
    args, kwargs = _value(node.args, environment), _value(node.kwargs, environment)
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]
    if node.op == "call_module":
        return _get(module, str(node.target))(*args, **kwargs)
    return getattr(args[0], str(node.target))(*args[1:], **kwargs)


def _get(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module
