"""The kernels of an int8 network whose sizes are functions of the group widths.

In: a `Quantized` network and its `Coupling`. Out: a `Site` for every kernel, and the sizes of every
tensor as `Extent`s. What quantization adds between the operators of the graph (other orders of
axes, other scales, paddings) has the sizes of what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hwprune.coupling import Coupling, Extent
from hwprune.errors import HwpruneError
from hwprune.lower.mcu.storage import moves_nothing
from hwprune.lower.spec import Call, TensorSpec
from hwprune.mcu_price.kernels import workload_of
from hwprune.quantize import graph as ops
from hwprune.quantize.quantizer import Quantized
from hwprune.workload import Extents, Site


@dataclass(frozen=True)
class Sized:
    """A network's tensors and kernels as functions of the widths.

    `tensors[name]` has an Extent for every dimension. `sites[i]` is the kernel of operator i; None
    where it only renames what lies in memory.
    """

    tensors: Mapping[str, Extents]
    sites: tuple[Site | None, ...]

    @property
    def kernels(self) -> tuple[Site, ...]:
        """The sites that are launched."""
        return tuple(site for site in self.sites if site is not None)


def sized(quantized: Quantized, coupling: Coupling) -> Sized:
    """The kernels of a quantized network, coupled as the program that it was made from."""
    return _Sizes(quantized, coupling).run()


class _Sizes:
    def __init__(self, quantized: Quantized, coupling: Coupling) -> None:
        self.graph, self.coupling, self.full = quantized.graph, coupling, coupling.full
        self.nodes: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        for node, (tensor, order) in quantized.placed.items():
            self.nodes.setdefault(tensor, []).append((node, order))
        self.weights = {
            step.node.name: str(step.weight.target)
            for step in quantized.steps
            if step.weight is not None
        }
        self.tensors: dict[str, Extents | None] = {}

    def run(self) -> Sized:
        graph = self.graph
        for name in graph.inputs:
            self.tensors[name] = self._known(name) or _fixed(graph.by_name[name].shape)
        for op in graph.operators:
            self.tensors[op.output] = self._known(op.output) or self._derived(op)
        sites = tuple(
            None if moves_nothing(graph, i) else self._site(op)
            for i, op in enumerate(graph.operators)
        )
        sizes = {
            name: extents or _fixed(graph.by_name[name].shape)
            for name, extents in self.tensors.items()
        }
        return Sized(sizes, sites)

    def _known(self, tensor: str) -> Extents | None:
        """The sizes of a tensor that is the value of a node."""
        for node, order in self.nodes.get(tensor, ()):
            try:
                found = tuple(self.coupling.extent(node, d) for d in order)
            except (KeyError, IndexError, HwpruneError):
                continue
            checked = self._checked(found, self.graph.by_name[tensor].shape)
            if checked is not None:
                return checked
        return None

    def _derived(self, op: ops.Operator) -> Extents | None:
        """The sizes of what an operator makes, by those of what it reads."""
        shape = self.graph.by_name[op.output].shape
        source = self.tensors[op.inputs[0]]
        if source is None:
            return None
        if isinstance(op, ops.Transpose):
            return self._checked(tuple(source[axis] for axis in op.axes), shape)
        if isinstance(op, ops.Reshape):
            wide = iter([e for e in source if e.terms or e.const != 1])
            found = [Extent(1) if size == 1 else next(wide, Extent(0)) for size in shape]
            return self._checked(tuple(found), shape)
        return self._checked(source, shape)

    def _checked(self, found: Extents, shape: Sequence[int]) -> Extents | None:
        """The extents with fixed sizes taken from the shape; None if they do not fit it."""
        if len(found) != len(shape):
            return None
        pairs = list(zip(found, shape, strict=True))
        if any(extent.terms and extent.at(self.full) != size for extent, size in pairs):
            return None
        return tuple(extent if extent.terms else Extent(size) for extent, size in pairs)

    def _site(self, op: ops.Operator) -> Site:
        inputs = [self.graph.by_name[name] for name in op.inputs]
        output = self.graph.by_name[op.output]
        workload = workload_of(op, inputs, output)
        call = Call(op.output, workload, op.inputs, (), op.output, (op.name,))
        read = [self.tensors[name] for name in op.inputs]
        made, params = self.tensors[op.output], self._weight(op, workload.params)
        if made is None or params is None or any(extents is None for extents in read):
            everything = [_fixed(spec.shape) for spec in (*workload.inputs, *workload.params)]
            count = len(workload.inputs)
            sizes = tuple(everything[:count]), _fixed(output.shape), tuple(everything[count:])
            site = Site(call, *sizes, dense=True)
        else:
            site = Site(call, tuple(e for e in read if e is not None), made, params)
        return replace(site, branch=self.coupling.branch_of(op.name))

    def _weight(self, op: ops.Operator, specs: Sequence[TensorSpec]) -> tuple[Extents, ...] | None:
        """The sizes of a layer's weights: (outputs, window, inputs of a group).

        None where they cannot be followed, as where an operator's arguments hold sizes too.
        """
        if isinstance(op, ops.Float):
            return None
        if not specs:
            return ()
        shape = specs[0].shape
        source, made = self.tensors[op.inputs[0]], self.tensors[op.output]
        if source is None or made is None:
            return None
        depth: Extent | None = source[-1]
        if shape[-1] != self.graph.by_name[op.inputs[0]].shape[-1]:
            depth = Extent(1) if shape[-1] == 1 else self._depth(op)
        if depth is None:
            return None
        found = self._checked((made[-1], *map(Extent, shape[1:-1]), depth), shape)
        return None if found is None else (found,)

    def _depth(self, op: ops.Operator) -> Extent | None:
        """The input channels of a group, where they are neither one nor all."""
        try:
            return self.coupling.parameter_extents(self.weights[op.name])[1]
        except (KeyError, IndexError, HwpruneError):
            return None


def _fixed(shape: Sequence[int]) -> Extents:
    return tuple(Extent(size) for size in shape)
