"""How the integers of a call follow the labels: sizes, bounds, split points, indices, groups.

Every supported operator that holds such integers has a resizer here; operators without one
take their sizes from their operands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from hwprune.coupling import Coupling
from hwprune.program import get_tensor
from hwprune.rules.arrangement import listed_dim
from hwprune.rules.engine import argument, operator_names
from hwprune.rules.movement import slice_range

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Resizing:
    """What resizers may ask: the original sizes, and which positions of a dimension stay."""

    module: fx.GraphModule
    coupling: Coupling
    mask: np.ndarray

    def shape(self, node: Any) -> tuple[int, ...]:
        """The original shape of a value, at the example inputs."""
        return self.coupling.shapes[node.name]

    def kept(self, node: Any, dim: int) -> np.ndarray | None:
        """Which positions of a dimension stay; None if all of them do."""
        kept = self.coupling.kept(node.name, dim % len(self.shape(node)), self.mask)
        return None if kept is None or bool(kept.all()) else kept

    def constant(self, node: fx.Node, values: np.ndarray) -> fx.Node:
        """A new index buffer of the module, as a node before `node`."""
        name = f"{node.name}_positions"
        self.module.register_buffer(name, torch.from_numpy(values.astype(np.int64)))
        with node.graph.inserting_before(node):
            return node.graph.get_attr(name)


Resizer = Callable[[Resizing, fx.Node], None]
RESIZERS: dict[str, Resizer] = {}


def resizer(*names: str) -> Callable[[Resizer], Resizer]:
    """Register a resizer for ATen operators, named as for rules."""

    def register(function: Resizer) -> Resizer:
        for name in names:
            RESIZERS[name] = function
        return function

    return register


def resize(sizes: Resizing, node: fx.Node) -> None:
    """Rewrite the integers of one call in place."""
    full, name = operator_names(node)
    found = RESIZERS.get(full) or RESIZERS.get(name)
    if found is not None and node.op == "call_function":
        found(sizes, node)


def _resized(sizes: Resizing, node: fx.Node, listed: Any, first: int = 0) -> list[Any]:
    """A list of output sizes, `first` being the dimension of its first entry.

    Heads in one dimension with the batch take what is left (-1): it is no plain number.
    """
    result = list(listed)
    left = None
    for place, size in enumerate(result):
        kept = sizes.kept(node, first + place)
        if kept is None or (isinstance(size, int) and size == -1):
            continue
        if isinstance(size, int):
            result[place] = int(kept.sum())
        else:
            left = place
    if left is not None:
        for place, size in enumerate(result):
            if isinstance(size, int) and size == -1:
                kept = sizes.kept(node, first + place)
                whole = sizes.shape(node)[first + place]
                result[place] = whole if kept is None else int(kept.sum())
        result[left] = -1
    return result


@resizer("view", "reshape", "_unsafe_view", "view_copy", "expand", "expand_copy", "broadcast_to",
         "new_zeros", "new_ones", "new_full")  # fmt: skip
def second_argument(sizes: Resizing, node: fx.Node) -> None:
    """`op(x, sizes)`."""
    node.update_arg(1, _resized(sizes, node, node.args[1]))


@resizer("zeros", "ones", "full")
def first_argument(sizes: Resizing, node: fx.Node) -> None:
    """`op(sizes)`."""
    node.update_arg(0, _resized(sizes, node, node.args[0]))


@resizer("unflatten")
def unflatten(sizes: Resizing, node: fx.Node) -> None:
    """`unflatten(x, dim, sizes)`."""
    dim = int(node.args[1]) % len(sizes.shape(node.args[0]))  # type: ignore[arg-type]
    node.update_arg(2, _resized(sizes, node, node.args[2], dim))


@resizer("layer_norm", "rms_norm")
def normalized_shape(sizes: Resizing, node: fx.Node) -> None:
    """`norm(x, normalized_shape, ...)`."""
    listed: Any = node.args[1]
    first = len(sizes.shape(node)) - len(listed)
    node.update_arg(1, _resized(sizes, node, listed, first))


@resizer("group_norm")
def norm_groups(sizes: Resizing, node: fx.Node) -> None:
    """The number of groups, where whole groups went."""
    kept = sizes.kept(node.args[0], 1)
    if kept is not None:
        groups = int(node.args[1])  # type: ignore[arg-type]
        node.update_arg(1, int(kept.reshape(groups, -1).any(axis=1).sum()))


@resizer("scaled_dot_product_attention")
def attention(sizes: Resizing, node: fx.Node) -> None:
    """The softmax keeps the scale that it was trained with."""
    query = node.args[0]
    if argument(node, 6, "scale") is None and sizes.kept(query, -1) is not None:
        node.update_kwarg("scale", sizes.shape(query)[-1] ** -0.5)


@resizer("slice", "narrow")
def take_slice(sizes: Resizing, node: fx.Node) -> None:
    """A range of a dimension that shrank: still a range, or else a list of positions."""
    x = node.args[0]
    dim = int(argument(node, 1, "dim", 0)) % len(sizes.shape(x))
    kept = sizes.kept(x, dim)
    if kept is None:
        return
    taken = slice_range(node, sizes.shape(x)[dim])
    places = (np.cumsum(kept) - 1)[taken[kept[taken]]]
    if len(places) and bool((np.diff(places) == 1).all()):
        node.target = _ATEN.slice.Tensor
        node.args = (x, dim, int(places[0]), int(places[-1]) + 1)
    else:
        node.target = _ATEN.index_select.default
        node.args = (x, dim, sizes.constant(node, places))
    node.kwargs = {}


@resizer("select")
def select(sizes: Resizing, node: fx.Node) -> None:
    """The selected position stays; those before it may have gone."""
    x = node.args[0]
    dim = int(node.args[1]) % len(sizes.shape(x))  # type: ignore[arg-type]
    kept = sizes.kept(x, dim)
    if kept is not None:
        index = int(node.args[2]) % len(kept)  # type: ignore[arg-type]
        node.update_arg(2, int(kept[:index].sum()))


@resizer("chunk", "split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "tensor_split")
def split(sizes: Resizing, node: fx.Node) -> None:
    """Pieces of counted sizes."""
    x = node.args[0]
    dim = int(argument(node, 2, "dim", 0)) % len(sizes.shape(x))
    kept = sizes.kept(x, dim)
    if kept is None:
        return
    ends = np.cumsum([int(piece.shape[dim]) for piece in node.meta["val"]])
    counts = [int(part.sum()) for part in np.split(kept, ends[:-1])]
    node.target = _ATEN.split_with_sizes.default
    node.args, node.kwargs = (x, counts, dim), {}


@resizer("constant_pad_nd", "pad")
def pad(sizes: Resizing, node: fx.Node) -> None:
    """New positions that stay, before and after each dimension."""
    x, listed = node.args[0], list(node.args[1])  # type: ignore[arg-type]
    shape = sizes.shape(x)
    for i in range(len(listed) // 2):
        dim = len(shape) - 1 - i
        kept = sizes.kept(node, dim)
        if kept is not None:
            low, high = listed[2 * i], listed[2 * i + 1]
            listed[2 * i] = int(kept[:low].sum())
            listed[2 * i + 1] = int(kept[len(kept) - high :].sum())
    node.update_arg(1, listed)


@resizer("index_select")
def index_select(sizes: Resizing, node: fx.Node) -> None:
    """Listed positions that stay, at their new places."""
    x, index = node.args[0], node.args[2]
    dim = int(node.args[1]) % len(sizes.shape(x))  # type: ignore[arg-type]
    kept = sizes.kept(x, dim)
    if kept is not None and isinstance(index, fx.Node):
        node.update_arg(2, _listed(sizes, node, index, kept))


@resizer("index")
def index(sizes: Resizing, node: fx.Node) -> None:
    """`x[:, positions]`: listed positions that stay, at their new places."""
    dim = listed_dim(node)
    kept = None if dim is None else sizes.kept(node.args[0], dim)
    if kept is not None:
        listed: Any = list(node.args[1])  # type: ignore[arg-type]
        listed[dim] = _listed(sizes, node, listed[dim], kept)
        node.update_arg(1, listed)


def _listed(sizes: Resizing, node: fx.Node, index: fx.Node, kept: np.ndarray) -> fx.Node:
    listed = get_tensor(sizes.module, str(index.target)).cpu().numpy()
    return sizes.constant(node, (np.cumsum(kept) - 1)[listed[kept[listed]]])


@resizer("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv(sizes: Resizing, node: fx.Node) -> None:
    """The number of groups, where whole groups went."""
    groups = int(argument(node, 6, "groups", 1))
    if groups > 1:
        _set_groups(sizes, node, 6, groups, "transpose" in str(node.target))


@resizer("convolution")
def convolution(sizes: Resizing, node: fx.Node) -> None:
    """The number of groups, where whole groups went."""
    groups = int(node.args[8])  # type: ignore[arg-type]
    if groups > 1:
        _set_groups(sizes, node, 8, groups, bool(node.args[6]))


def _set_groups(
    sizes: Resizing, node: fx.Node, position: int, groups: int, transposed: bool
) -> None:
    """Input channels that stay, over the input channels of one group that stay."""
    x, weight = node.args[0], node.args[1]
    shape = sizes.shape(weight)
    kept = sizes.kept(x, len(sizes.shape(x)) - len(shape) + 1)
    if kept is None:
        return
    within = None if transposed else sizes.kept(weight, 1)
    each = shape[0] // groups if transposed else shape[1]
    count = int(kept.sum()) // (int(within.sum()) if within is not None else each)
    if len(node.args) > position:
        node.update_arg(position, count)
    else:
        node.update_kwarg("groups", count)
