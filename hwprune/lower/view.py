"""A tensor that lies transposed, or as one part of several, in the memory of another one.

`View` is the algebra of such layouts: what permute, select, split and reshape do to them. Its text
is the `layout` of a `TensorSpec`. Sizes come from the logical shape, so it holds for any width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

PREFIX = "view:"
Axis = int | tuple[int, int]
Index = TypeVar("Index")


@dataclass(frozen=True)
class View:
    """For every axis of memory, the logical dimension it is, or (index, size) where it is fixed."""

    axes: tuple[Axis, ...]

    @staticmethod
    def whole(rank: int) -> View:
        """The row-major tensor itself."""
        return View(tuple(range(rank)))

    @staticmethod
    def parse(layout: str) -> View:
        """The inverse of `text` for a view that is not row-major."""
        fields = layout.removeprefix(PREFIX).split(",")
        return View(tuple(_axis(f) for f in fields))

    @property
    def rank(self) -> int:
        """Logical dimensions."""
        return sum(isinstance(a, int) for a in self.axes)

    @property
    def is_whole(self) -> bool:
        """Whether it is row-major."""
        return self.axes == tuple(range(len(self.axes)))

    @property
    def text(self) -> str:
        """As "view:0,2,1/3,1,3": memory axis 2 is fixed at 1 of 3, the others are dimensions."""
        fields = (str(a) if isinstance(a, int) else f"{a[0]}/{a[1]}" for a in self.axes)
        return PREFIX + ",".join(fields)

    def memory(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape in memory of a logical shape."""
        return tuple(shape[a] if isinstance(a, int) else a[1] for a in self.axes)

    def index(self, at: Sequence[Index]) -> list[Index | int]:
        """Where in memory the logical element `at` lies."""
        return [at[a] if isinstance(a, int) else a[0] for a in self.axes]

    def normal(self, shape: Sequence[int]) -> View:
        """The same with dimensions of size 1, which lie anywhere, where they hurt least."""
        kept = [a for a in self.axes if not isinstance(a, int) or shape[a] != 1]
        dims = [a for a in kept if isinstance(a, int)]
        if len(dims) == len(kept) and dims == sorted(dims):
            return View.whole(len(shape))
        return View((*(d for d, size in enumerate(shape) if size == 1), *kept))

    def permuted(self, dims: Sequence[int]) -> View:
        """Its transpose: new dimension i is old dimension `dims[i]`."""
        places = {old: new for new, old in enumerate(dims)}
        return View(tuple(places[a] if isinstance(a, int) else a for a in self.axes))

    def selected(self, dim: int, index: int, size: int) -> View:
        """One index of a dimension, which goes."""
        fixed: tuple[Axis, ...] = ((index, size),) if size > 1 else ()
        return self._replace({dim: fixed}, lambda d: d - (d > dim))

    def part(self, dim: int, index: int, parts: int) -> View:
        """One of so many equal parts of a dimension."""
        pieces: tuple[Axis, ...] = ((index, parts), dim) if parts > 1 else (dim,)
        return self._replace({dim: pieces}, lambda d: d)

    def every(self, dim: int, start: int, step: int) -> View:
        """Every step-th index of a dimension that is a multiple of the step."""
        pieces: tuple[Axis, ...] = (dim, (start, step)) if step > 1 else (dim,)
        return self._replace({dim: pieces}, lambda d: d)

    def _replace(self, new: Mapping[int, tuple[Axis, ...]], rename: Callable[[int], int]) -> View:
        axes: list[Axis] = []
        for a in self.axes:
            if not isinstance(a, int):
                axes.append(a)
            elif a in new:
                axes.extend(new[a])
            else:
                axes.append(rename(a))
        return View(tuple(axes))

    def reshaped(self, old: Sequence[int], new: Sequence[int]) -> View | None:
        """It in another shape; None where its elements do not lie so."""
        groups = _matched(old, new)
        if groups is None or any(size == 0 for size in old):
            return None
        kept = [a for a in self.axes if not isinstance(a, int) or old[a] != 1]
        for before, after in groups:
            first = kept.index(before[0])
            if kept[first : first + len(before)] != before:
                return None
            # Renamed below zero, so as not to be taken for dimensions of the old shape.
            kept[first : first + len(before)] = [-1 - d for d in after]
        units = [d for d, size in enumerate(new) if size == 1]
        return View((*units, *(-1 - a if isinstance(a, int) else a for a in kept)))


def _matched(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]] | None:
    """The smallest runs of dimensions of equal size in both shapes; those of size 1 left out."""
    left = [d for d, size in enumerate(old) if size != 1]
    right = [d for d, size in enumerate(new) if size != 1]
    if prod(old) != prod(new):
        return None
    groups = []
    while left and right:
        before, after = [left.pop(0)], [right.pop(0)]
        while (a := prod(old[d] for d in before)) != (b := prod(new[d] for d in after)):
            before.append(left.pop(0)) if a < b else after.append(right.pop(0))
        groups.append((before, after))
    return groups


def _axis(field: str) -> Axis:
    index, slash, size = field.partition("/")
    return (int(index), int(size)) if slash else int(index)
