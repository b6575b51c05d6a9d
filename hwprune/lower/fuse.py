"""Fuse a folded graph into kernel calls and decide where tensors are packed.

In: a `Program` from `fold_batch_norm`. Out: `Fused`, the calls in launch order. Images made by
convolutions and pools are packed and stay packed through everything that can work on packed
tensors; `layout` calls appear only where a reader needs the other layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from hwprune.capture import Program
from hwprune.errors import LoweringError
from hwprune.lower.epilogue import Absorbed, is_float, match, next_step, unary_step
from hwprune.lower.fold import channel_affine
from hwprune.lower.functional import packet, place
from hwprune.lower.match import Root, find_root, is_alias, is_split, shape
from hwprune.lower.reference import encode
from hwprune.lower.spec import PACKED, PLAIN, Call, Step, TensorSpec, Workload

PLAIN_CHANNELS = 8  # convolutions read plain images of at most so many channels directly

_EPILOGUES = frozenset(("conv2d", "linear", "elementwise"))
_PACKED_OPS = frozenset(("conv2d", "max_pool2d", "avg_pool2d", "global_avg_pool"))


@dataclass(frozen=True)
class Fused:
    """The kernel calls of a program and how its values are connected.

    `aliases[v]` names the (plain) value that `v` is another shape of; `outputs` are the plain
    values that the program returns, in order; `constants` the values that are buffers of the
    program's module, by value name -> buffer name (packed where the name ends in "@packed").
    """

    calls: tuple[Call, ...]
    aliases: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]


def fuse(program: Program) -> tuple[Call, ...]:
    """The kernel calls of a folded program, in launch order.

    Raises LoweringError for graph nodes that are no tensor computation.
    """
    return fuse_graph(program).calls


def fuse_graph(program: Program) -> Fused:
    """The kernel calls of a folded program and how its values are connected."""
    return _Fuser(program).run()


@dataclass
class _Pending:
    """A kernel that has been matched and is launched when its last node is reached."""

    root_node: fx.Node
    root: Root
    steps: list[Absorbed] = field(default_factory=list)


class _Fuser:
    def __init__(self, program: Program) -> None:
        self.graph = program.module.graph
        self.order = {node: i for i, node in enumerate(self.graph.nodes)}
        self.calls: list[Call] = []
        self.layouts: dict[fx.Node, set[str]] = {}
        self.native: dict[fx.Node, str] = {}
        self.aliases: dict[str, str] = {}
        self.constants: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.taken: set[fx.Node] = set()
        self.pending: dict[fx.Node, _Pending] = {}

    def run(self) -> Fused:
        """Visit the graph in order."""
        inputs, outputs = [], ()
        for node in self.graph.nodes:
            if node.op == "placeholder":
                inputs.append(node.name)
                self._define(node, PLAIN)
            elif node.op == "get_attr":
                self._define_constant(node)
            elif node.op == "output":
                outputs = self._outputs(node)
            elif node.op == "call_function":
                self._visit(node)
            else:
                raise LoweringError(f"cannot lower a {node.op} node", where=place(node))
        return Fused(
            self._live_calls(outputs), self.aliases, tuple(inputs), outputs,
            self.constants, self.shapes,
        )

    def _outputs(self, node: fx.Node) -> tuple[str, ...]:
        leaves: list[fx.Node] = []
        fx.map_arg(node.args, lambda n: leaves.append(n))
        return tuple(self._value(n, PLAIN) for n in leaves if n.meta.get("val") is not None)

    def _define(self, node: fx.Node, layout: str, name: str | None = None) -> None:
        self.layouts[node] = {layout}
        self.native[node] = layout
        self.shapes[name or node.name] = shape(node)

    def _define_constant(self, node: fx.Node) -> None:
        if isinstance(node.meta.get("val"), Tensor):
            self._define(node, PLAIN)
            self.constants[node.name] = str(node.target)

    def _visit(self, node: fx.Node) -> None:
        if node in self.taken:
            if node in self.pending:
                self._launch(node, self.pending.pop(node))
            return
        if is_split(node) or (isinstance(node.meta.get("val"), list | tuple)):
            return  # its elements are kernels of their own
        if is_alias(node):
            self._alias(node)
            return
        root = find_root(node) or _elementwise(node)
        if root is None:
            self._fallback(node)
            return
        pending = _Pending(node, root)
        first = _first_step(node) if root.op == "elementwise" else None
        if first is not None:
            pending.steps.append(first)
        self._grow(pending)

    def _alias(self, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        base = self._value(source, PLAIN)
        self._define(node, PLAIN)
        self.aliases[node.name] = base

    def _grow(self, pending: _Pending) -> None:
        """Absorb readers for as long as there is one that fits, then launch or wait for them."""
        current = pending.steps[-1].result if pending.steps else pending.root_node
        while pending.root.op in _EPILOGUES:
            step = next_step(current)
            if step is None or not self._fits(pending, step):
                break
            pending.steps.append(step)
            current = step.result
        nodes = {n for step in pending.steps for n in step.nodes}
        self.taken |= nodes
        if current is pending.root_node or self.order[current] <= self.order[pending.root_node]:
            self._launch(current, pending)
        else:
            self.pending[current] = pending

    def _fits(self, pending: _Pending, step: Absorbed) -> bool:
        if any(n in self.taken for n in step.nodes):
            return False
        rank = len(shape(step.result))
        if pending.root.op == "linear" and rank == 4 and step.params:
            return False  # its channels are the last axis
        return all(self._operand_fits(pending, step, other) for other in step.inputs)

    def _operand_fits(self, pending: _Pending, step: Absorbed, other: fx.Node) -> bool:
        """Whether an operand can be read by the kernel: its shape, and that it comes in time."""
        mine, theirs = shape(step.result), shape(other)
        if len(mine) == 4 and pending.root.op != "linear" and not _same_channels(mine, theirs):
            return False
        late = self.order[other] > self.order[pending.root_node]
        return not (late and theirs == mine and _ends_a_layer(other))

    def _launch(self, result: fx.Node, pending: _Pending) -> None:
        """Emit the call of a kernel whose operands all exist by now."""
        root = pending.root
        operands = [*root.inputs, *(n for s in pending.steps for n in s.inputs)]
        layouts, output = self._choose_layouts(root, operands, result)
        params = [] if root.weight is None else [root.weight]
        steps: list[Step] = []
        if root.bias is not None:
            params.append(root.bias)
            steps.append(Step("bias"))
        for absorbed in pending.steps:
            steps.append(absorbed.step)
            params.extend(absorbed.params)
        node, out_shape, skipped = self._result(root, result)
        workload = Workload(
            root.op,
            tuple(TensorSpec(shape(n), "float32", k) for n, k in zip(operands, layouts, strict=True)),
            TensorSpec(out_shape, "float32", output),
            tuple(TensorSpec(shape(p)) for p in params),
            tuple(sorted(root.attrs.items())),
            tuple(steps),
        )
        first = [] if root.op == "elementwise" else [pending.root_node]
        inner = [n for s in pending.steps for n in s.nodes]
        nodes = tuple(n.name for n in (*root.nodes, *first, *inner, *skipped))
        args = tuple(self._value(n, k) for n, k in zip(operands, layouts, strict=True))
        names = tuple(str(p.target) for p in params)
        self.calls.append(Call(pending.root_node.name, workload, args, names, node.name, nodes))
        self._define(node, output)

    def _result(
        self, root: Root, result: fx.Node
    ) -> tuple[fx.Node, tuple[int, ...], tuple[fx.Node, ...]]:
        """What a kernel yields: a global pool that is only flattened yields the flat tensor."""
        if root.op == "global_avg_pool" and len(shape(result)) == 4:
            readers = list(result.users)
            flat = shape(result)[:2]
            if len(readers) == 1 and is_alias(readers[0]) and shape(readers[0]) == flat:
                self.taken.add(readers[0])
                return readers[0], flat, (readers[0],)
        return result, shape(result), ()

    def _choose_layouts(
        self, root: Root, operands: Sequence[fx.Node], result: fx.Node
    ) -> tuple[list[str], str]:
        """The layout of every operand and of the result."""
        if root.op in _PACKED_OPS:
            layouts = [PACKED] * len(operands)
            source = operands[0]
            few = shape(source)[1] <= PLAIN_CHANNELS
            if root.op == "conv2d" and few and self.native[source] == PLAIN:
                ungrouped = shape(root.weight)[1] == shape(source)[1]  # type: ignore[arg-type]
                layouts[0] = PLAIN if ungrouped else PACKED
            flat = root.op == "global_avg_pool" and self._pools_flat(root, result)
            return layouts, PLAIN if flat else PACKED
        images = all(len(shape(n)) == 4 for n in operands)
        packed = images and any(self.native[n] == PACKED for n in operands)
        if root.op in ("concat", "slice") and root.attrs["axis"] != 1:
            packed = False
        if root.op == "linear":
            packed = False
        if root.op == "elementwise" and packed:
            packed = all(_same_channels(shape(result), shape(n)) for n in operands)
        layout = PACKED if packed else PLAIN
        return [layout] * len(operands), layout

    def _pools_flat(self, root: Root, result: fx.Node) -> bool:
        return len(self._result(root, result)[1]) == 2

    def _value(self, node: fx.Node, layout: str) -> str:
        """The name of a node's value in a layout; inserts a `layout` call if it is not there."""
        if node not in self.native:
            raise LoweringError(f"{node.target} yields no tensor", where=place(node))
        native = self.native[node]
        if layout == native:
            return node.name
        name = f"{node.name}@{layout}"
        if layout in self.layouts[node]:
            return name
        self.layouts[node].add(layout)
        self.shapes[name] = shape(node)
        if node.op == "get_attr":
            self.constants[name] = str(node.target)
            return name
        workload = Workload(
            "layout",
            (TensorSpec(shape(node), "float32", native),),
            TensorSpec(shape(node), "float32", layout),
        )
        self.calls.append(Call(name, workload, (node.name,), (), name, ()))
        return name

    def _fallback(self, node: fx.Node) -> None:
        """Any other call: one kernel through TVM's importer, on plain tensors."""
        source, item = node, None
        if packet(node) == "getitem":
            source, item = node.args[0], node.args[1]
        if not isinstance(source, fx.Node) or not hasattr(source.target, "overloadpacket"):
            raise LoweringError(f"cannot lower {node.target}", where=place(node))
        inputs: list[fx.Node] = []
        params: list[fx.Node] = []

        def refer(value: Any) -> dict[str, int] | None:
            if not isinstance(value, fx.Node):
                return None
            kind, found = ("param", params) if value.op == "get_attr" else ("input", inputs)
            if value not in found:
                found.append(value)
            return {kind: found.index(value)}

        args, kwargs = encode(list(source.args), refer), encode(dict(source.kwargs), refer)
        text = json.dumps({"args": args, "kwargs": kwargs}, sort_keys=True)
        attrs: list[tuple[str, Any]] = [("args", text)]
        if item is not None:
            attrs.append(("item", item))
        attrs.append(("target", str(source.target)))
        workload = Workload(
            "aten", tuple(map(_spec, inputs)), _spec(node), tuple(map(_spec, params)), tuple(attrs)
        )
        values = tuple(self._value(n, PLAIN) for n in inputs)
        names = tuple(str(p.target) for p in params)
        nodes = (node.name,) if source is node else (source.name, node.name)
        self.calls.append(Call(node.name, workload, values, names, node.name, nodes))
        self._define(node, PLAIN)

    def _live_calls(self, outputs: tuple[str, ...]) -> tuple[Call, ...]:
        """The calls that something reads, in order."""
        needed = {self._base(name) for name in outputs}
        live: list[Call] = []
        for call in reversed(self.calls):
            if call.output in needed:
                live.append(call)
                needed.update(self._base(name) for name in call.args)
        return tuple(reversed(live))

    def _base(self, name: str) -> str:
        """The value that a name is another shape of."""
        while name in self.aliases:
            name = self.aliases[name]
        return name


def _spec(node: fx.Node) -> TensorSpec:
    found = node.meta.get("val")
    if not isinstance(found, Tensor):
        raise LoweringError(f"{node.target} yields no tensor", where=place(node))
    return TensorSpec(shape(node), str(found.dtype).removeprefix("torch."))


def _elementwise(node: fx.Node) -> Root | None:
    """A kernel that is only an epilogue, on the node's main operand."""
    first = _first_step(node)
    if first is None:
        return None
    return Root("elementwise", (_main_operand(node),))


def _main_operand(node: fx.Node) -> fx.Node:
    """The operand that has the result's shape (the gate of a product is the other one)."""
    for candidate in node.args[:2]:
        if is_float(candidate) and shape(candidate) == shape(node):  # type: ignore[arg-type]
            return candidate  # type: ignore[return-value]
    raise LoweringError("no operand has the result's shape", where=place(node))


def _first_step(node: fx.Node) -> Absorbed | None:
    """The node as the first step of an elementwise kernel."""
    if not is_float(node) or node.op != "call_function":
        return None
    known = unary_step(node) is not None or node.target is channel_affine
    if not known and packet(node) not in ("aten.add", "aten.sub", "aten.mul", "aten.prelu"):
        return None
    try:
        main = _main_operand(node)
    except LoweringError:
        return None
    if main.op == "get_attr":
        return None
    found = match(node, main)
    if found is None and len(node.args) == 2 and node.args[0] is node.args[1]:
        op = packet(node).removeprefix("aten.")
        found = Absorbed(Step(op), (node,), (main,)) if op in ("add", "mul") else None
    return found


def _same_channels(mine: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Whether an operand can be packed like the result (it may broadcast over batch and space)."""
    return len(theirs) == 4 and theirs[1] == mine[1]


def _ends_a_layer(node: fx.Node) -> bool:
    """Whether a value is the result of a layer that could take its only reader as a step."""
    current = node
    while len(current.users) == 1:
        root = find_root(current)
        if root is not None:
            return root.op in ("conv2d", "linear")
        if unary_step(current) is None or not isinstance(current.args[0], fx.Node):
            return False
        current = current.args[0]
    return False

