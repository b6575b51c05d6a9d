"""Sizes that no kernel can have, refused before anything is compiled.

In: a `Program` with static shapes, or its kernel calls. Raises LoweringError with the user's line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from torch import Tensor, fx
from torch.utils import _pytree

from hwprune.capture import Program
from hwprune.errors import LoweringError
from hwprune.lower.functional import place
from hwprune.lower.spec import Call, TensorSpec, Workload

MOST_ELEMENTS = 2**31 - 1  # kernels index elements by 32-bit integers


def check_tensors(program: Program) -> None:
    """Every tensor of the graph has elements, and few enough to be indexed."""
    for node in program.module.graph.nodes:
        for tensor in _tensors(node):
            shape = tuple(int(size) for size in tensor.shape)
            if 0 in shape:
                raise LoweringError(
                    f"the tensor {node.name} of shape {shape} has no elements",
                    where=place(node),
                    hint="leave it out, or use larger inputs",
                )
            if prod(shape) > MOST_ELEMENTS:
                raise _too_large(node, f"of shape {shape}", prod(shape))


def check_calls(calls: Sequence[Call], program: Program, lanes: int) -> None:
    """Every tensor can be indexed as it lies in memory: in whole vectors, with its border."""
    nodes = {node.name: node for node in program.module.graph.nodes}
    for call in calls:
        for spec, shape in _physical(call.workload, lanes):
            if prod(shape) > MOST_ELEMENTS:
                node = nodes[call.output.partition("@")[0]]
                kind = f"in vectors of {lanes} channels, shape {spec.shape} as {shape},"
                raise _too_large(node, kind, prod(shape))


def _tensors(node: fx.Node) -> list[Tensor]:
    found = _pytree.tree_leaves(node.meta.get("val")) if node.op != "output" else []
    return [value for value in found if isinstance(value, Tensor)]


def _physical(workload: Workload, lanes: int) -> Iterator[tuple[TensorSpec, tuple[int, ...]]]:
    """The tensors of a kernel with their shapes in memory; a padded input is copied."""
    for spec in (*workload.inputs, *workload.params, workload.output):
        yield spec, spec.physical(lanes)
    if workload.op == "conv2d":
        spec = workload.inputs[0]
        top, left, bottom, right = workload.attr("padding")
        n, c, height, width, *rest = spec.physical(lanes)
        yield spec, (n, c, height + top + bottom, width + left + right, *rest)


def _too_large(node: fx.Node, kind: str, elements: int) -> LoweringError:
    return LoweringError(
        f"the tensor {node.name} {kind} has {elements:,} elements, more than 32 bits can index",
        where=place(node),
        hint=f"at most {MOST_ELEMENTS:,}: use smaller inputs",
    )
