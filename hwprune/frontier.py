"""Run a network from where a change begins: what lies before is computed once.

In: a graph module and batches. `Frontier.advance` brings all batches up to a node; `finish` runs
the rest from there, as often as asked, with whatever the parameters are by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map


class Frontier:
    """Batches on their way through a graph, all of them before the same node."""

    def __init__(self, module: fx.GraphModule, batches: Sequence[Sequence[Tensor]]) -> None:
        self.module, self.nodes = module, list(module.graph.nodes)
        self.place = 0
        self.runs = [fx.Interpreter(module) for _ in batches]
        for run, inputs in zip(self.runs, batches, strict=True):
            run.args_iter = iter(module.graph.process_inputs(*inputs))
        self._run_to(max(i for i, n in enumerate(self.nodes) if n.op == "placeholder") + 1)

    def advance(self, nodes: frozenset[str]) -> None:
        """Go on to the first node of these names; nothing where that was passed already."""
        named = (i for i, n in enumerate(self.nodes) if n.name in nodes)
        self._run_to(next(named, self.place))

    def _run_to(self, place: int) -> None:
        with torch.no_grad():
            for node in self.nodes[self.place : place]:
                for run in self.runs:
                    _step(run, node)
        self.place = max(place, self.place)

    def finish(
        self, batch: int, reads: Mapping[str, Callable[[Tensor], Tensor]] | None = None
    ) -> Any:
        """The outputs of a batch; what was computed before the frontier is left as it is.

        `reads` change, by the name of a node, what it reads as its first argument.
        """
        own = self._from_here(batch)
        with torch.no_grad():
            for node in self.nodes[self.place :]:
                if node.op == "output":
                    return self.module.graph.process_outputs(own.run_node(node))
                _step(own, node, (reads or {}).get(node.name))
        raise AssertionError("a graph without an output")

    def look(self, batch: int, nodes: frozenset[str]) -> Iterator[tuple[str, Tensor]]:
        """What each of these nodes reads as its first argument, with its name."""
        own = self._from_here(batch)
        left = set(nodes)
        with torch.no_grad():
            for node in self.nodes[self.place :]:
                if node.name in left:
                    yield node.name, own.fetch_args_kwargs_from_env(node)[0][0]
                    left.remove(node.name)
                if not left:
                    return
                _step(own, node)

    def _from_here(self, batch: int) -> fx.Interpreter:
        own = fx.Interpreter(self.module)
        own.env = {n: tree_map(_copied, value) for n, value in self.runs[batch].env.items()}
        return own


def _step(
    run: fx.Interpreter, node: fx.Node, read: Callable[[Tensor], Tensor] | None = None
) -> None:
    if read is None:
        run.env[node] = run.run_node(node)
    else:
        (first, *rest), kwargs = run.fetch_args_kwargs_from_env(node)
        run.env[node] = run.call_function(node.target, (read(first), *rest), kwargs)  # type: ignore[arg-type]
    for dead in run.user_to_last_uses.get(node, ()):
        del run.env[dead]


def _copied(value: Any) -> Any:
    """A copy that operators may write to; of a parameter that nothing has changed, itself."""
    return value.clone() if isinstance(value, Tensor) and not value.requires_grad else value
