"""A network run without one residual branch: x, and what x tells of f(x), in place of x + f(x).

In: a graph module, its branches, inputs to fit on. Out: outputs. Layers that read the sum can make
the same of x by least squares; without inputs to fit on, f(x) is nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from hwprune.branches import parts
from hwprune.coupling import Branch, Coupling
from hwprune.restore import Moments

_Told = Callable[[Tensor], Tensor]


class Skipped:
    """Runs a network without a branch; regressions for all branches are fitted in one pass."""

    def __init__(
        self,
        module: fx.GraphModule,
        coupling: Coupling,
        fit: Sequence[Sequence[Tensor]] = (),
    ) -> None:
        self.module, self.coupling, self.fit = module, coupling, fit
        self.branches = {b.name: b for b in coupling.branches}

    def without(self, name: str) -> Callable[..., Any]:
        """The network without the branch of this name: a function of its inputs."""
        branch = self.branches[name]
        moments = self._moments.get(branch.add)
        return _Without(self.module, branch, None if moments is None else _told(moments)).run

    @cached_property
    def _moments(self) -> dict[str, Moments]:
        found: dict[str, Moments] = {}
        with torch.no_grad():
            for inputs in self.fit:
                _Looking(self.module, self.coupling, found).run(*inputs)
        return found


class _Looking(fx.Interpreter):
    """Adds what sums of branches are made of to moments, x before f(x)."""

    def __init__(
        self, module: fx.GraphModule, coupling: Coupling, found: dict[str, Moments]
    ) -> None:
        super().__init__(module)
        self.coupling, self.found = coupling, found
        self.adds = {b.add: b for b in coupling.branches}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        if n.name in self.adds:
            x, f = parts(self.adds[n.name], n, self.fetch_args_kwargs_from_env(n)[0])
            if x.shape == f.shape:
                dim = _channels(self.coupling, n.name, x.ndim)
                moments = self.found.setdefault(n.name, Moments(dim, joint=True))
                moments.add(torch.cat([x, f], moments.dim))
        return super().run_node(n)


class _Without(fx.Interpreter):
    """Runs a graph in which a sum is its shortcut alone, corrected."""

    def __init__(self, module: fx.GraphModule, branch: Branch, told: _Told | None) -> None:
        super().__init__(module)
        self.branch, self.told = branch, told

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        if n.name != self.branch.add:
            return super().run_node(n)
        x, f = parts(self.branch, n, self.fetch_args_kwargs_from_env(n)[0])
        return x + (0 * f if self.told is None else self.told(x))


def _told(moments: Moments) -> _Told:
    """What x, the first half of the channels of these moments, tells of f(x), the second."""
    dim, width = moments.dim, len(moments.total) // 2
    restore = moments.restore(torch.arange(width, 2 * width))
    return lambda x: restore(torch.cat([x, torch.zeros_like(x)], dim)).narrow(dim, width, width)


def _channels(coupling: Coupling, add: str, ndim: int) -> int:
    """The dimension of a sum that has units; where none has, maps have channels second."""
    axes = {d: coupling.axes.get((add, d)) for d in range(ndim)}
    of_units = [d for d, axis in axes.items() if axis is not None and (axis.units >= 0).any()]
    return of_units[0] if of_units else 1 if ndim == 4 else ndim - 1
