"""A network run without one residual branch: x, and what x tells of f(x), in place of x + f(x).

In: a graph module, its branches, inputs to fit on. Out: outputs. Layers that read the sum can make
the same of x by least squares; without inputs to fit on, f(x) is nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from hwprune.coupling import Branch
from hwprune.restore import Moments


class Skipped:
    """Runs a network without a branch; regressions for all branches are fitted in one pass."""

    def __init__(
        self,
        module: fx.GraphModule,
        branches: Sequence[Branch],
        fit: Sequence[Sequence[Tensor]] = (),
    ) -> None:
        self.module, self.fit = module, fit
        self.branches = {b.name: b for b in branches}

    def run(self, name: str, inputs: Sequence[Tensor]) -> Any:
        """The outputs without the branch of this name."""
        branch = self.branches[name]
        return _Without(self.module, branch, self._moments.get(branch.add)).run(*inputs)

    @cached_property
    def _moments(self) -> dict[str, Moments]:
        found: dict[str, Moments] = {}
        adds = {b.add: b for b in self.branches.values()}
        with torch.no_grad():
            for inputs in self.fit:
                _Looking(self.module, adds, found).run(*inputs)
        return found


class _Looking(fx.Interpreter):
    """Adds what sums of branches are made of to moments, x before f(x)."""

    def __init__(
        self, module: fx.GraphModule, adds: Mapping[str, Branch], found: dict[str, Moments]
    ) -> None:
        super().__init__(module)
        self.adds, self.found = adds, found

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        if n.name in self.adds:
            x, f = _parts(self, n, self.adds[n.name])
            if x.shape == f.shape:
                moments = self.found.setdefault(n.name, Moments(_channels(x), joint=True))
                moments.add(torch.cat([x, f], moments.dim))
        return super().run_node(n)


class _Without(fx.Interpreter):
    """Runs a graph in which a sum is its shortcut alone, corrected."""

    def __init__(self, module: fx.GraphModule, branch: Branch, moments: Moments | None) -> None:
        super().__init__(module)
        self.branch, self.moments = branch, moments

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        if n.name != self.branch.add:
            return super().run_node(n)
        x, f = _parts(self, n, self.branch)
        if self.moments is None:
            return x + 0 * f
        dim, width = self.moments.dim, x.shape[self.moments.dim]
        gone = torch.arange(width, 2 * width)
        told = self.moments.restore(gone)(torch.cat([x, torch.zeros_like(f)], dim))
        return x + told.narrow(dim, width, width)


def _parts(run: fx.Interpreter, add: fx.Node, branch: Branch) -> tuple[Tensor, Tensor]:
    """x and f(x) of a sum."""
    args, _ = run.fetch_args_kwargs_from_env(add)
    named = [a.name if isinstance(a, fx.Node) else "" for a in add.args[:2]]
    at = named.index(branch.output)
    return args[1 - at], args[at]


def _channels(value: Tensor) -> int:
    """Maps have their channels second, sequences last."""
    return 1 if value.ndim == 4 else value.ndim - 1
