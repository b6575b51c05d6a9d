"""Coupling: run label rules over a `Program`, unite labels into units, units into `Group`s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, order=True)
class Site:
    """One axis of one parameter or buffer (dotted name)."""

    parameter: str
    dim: int


@dataclass(frozen=True)
class Extent:
    """A size that depends on the plan: const + sum of coefficient x kept width of a group."""

    const: int
    terms: tuple[tuple[str, int], ...] = ()

    def at(self, widths: Mapping[str, int]) -> int:
        """The size when each group keeps `widths[group]` units."""
        return self.const + sum(c * widths[g] for g, c in self.terms)


@dataclass(frozen=True)
class Group:
    """Units that may be removed independently, all with the same sites.

    `index[site]` is (width, k) int64: the k indices that each unit owns on that axis.
    `name` is the first site's parameter without its last component ("layer1.0.conv1"),
    unique among groups.
    """

    name: str
    width: int
    index: Mapping[Site, np.ndarray]
    through_norm_statistics: bool = False  # layer/group norm statistics run over these units

    @property
    def sites(self) -> tuple[Site, ...]:
        """The parameter axes that shrink with this group, sorted."""
        return tuple(sorted(self.index))


@dataclass(frozen=True)
class Frozen:
    """Units that must stay, and why (op, graph node, the user's source line)."""

    name: str
    width: int
    sites: tuple[Site, ...]
    reason: str
    node: str
    source: str
