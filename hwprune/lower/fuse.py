"""Fuse a folded graph into kernel calls and decide where tensors are packed.

In: a `Program` from `fold_batch_norm`. Out: `Fused`, the calls in launch order. `layout` calls
appear only where a reader needs another layout than the producer left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from hwprune.capture import Program
from hwprune.errors import LoweringError
from hwprune.lower.aten import aten_call
from hwprune.lower.elementwise import elementwise_root, ends_a_layer, first_step
from hwprune.lower.epilogue import Absorbed, next_step
from hwprune.lower.expansion import join_expansions
from hwprune.lower.functional import place
from hwprune.lower.layout import choose_layouts, same_channels
from hwprune.lower.lazy import TO_FIRST, find_view
from hwprune.lower.limits import check_tensors
from hwprune.lower.match import find_root, find_shuffle
from hwprune.lower.movement import is_alias, is_split, transposition
from hwprune.lower.root import Root, shape
from hwprune.lower.spec import LAST, PLAIN, Call, Step, TensorSpec, Workload

FLIP = Step("flip")  # no step of a workload: the result's layout says it
_EPILOGUES = frozenset(("conv2d", "linear", "elementwise", "concat"))


@dataclass(frozen=True)
class Fused:
    """The kernel calls of a program and how its values are connected.

    `aliases[v]` names the value that `v` is another shape or a view of; `inputs` and `outputs` are
    the plain values that the program takes and returns, in order; `constants` the values that
    are tensors of the program's module, by value name -> its dotted name (packed where the
    value's name ends in "@packed"); `specs` the shape and layout of every value; `dtype` that of
    its floating-point tensors.
    """

    calls: tuple[Call, ...]
    aliases: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, str]
    specs: Mapping[str, TensorSpec]
    dtype: str = "float32"


def fuse(program: Program) -> tuple[Call, ...]:
    """The kernel calls of a folded program, in launch order.

    Raises LoweringError for graph nodes that are no tensor computation, and for tensors that are
    empty or too large.
    """
    return fuse_graph(program).calls


def fuse_graph(program: Program, *, joins: bool = True) -> Fused:
    """The kernel calls of a folded program and how its values are connected.

    `joins` says whether expansions and depthwise convolutions become one kernel.
    """
    check_tensors(program)
    return _Fuser(program, joins).run()


@dataclass
class _Pending:
    """A kernel that has been matched and is launched when its last node is reached."""

    root_node: fx.Node
    root: Root
    steps: list[Absorbed] = field(default_factory=list)

    @property
    def flipped(self) -> bool:
        """Whether the channels of a linear layer have been moved to axis 1."""
        return any(absorbed.step == FLIP for absorbed in self.steps)


class _Fuser:
    def __init__(self, program: Program, joins: bool) -> None:
        self.joins = joins
        self.graph = program.module.graph
        self.order = {node: i for i, node in enumerate(self.graph.nodes)}
        self.calls: list[Call] = []
        self.layouts: dict[fx.Node, set[str]] = {}
        self.native: dict[fx.Node, str] = {}
        self.aliases: dict[str, str] = {}
        self.constants: dict[str, str] = {}
        self.specs: dict[str, TensorSpec] = {}
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
        calls = self._live_calls(outputs)
        if self.joins:
            calls = join_expansions(calls, outputs, self.aliases)
        return Fused(
            calls,
            self.aliases,
            tuple(inputs),
            outputs,
            self.constants,
            self.specs,
        )

    def _outputs(self, node: fx.Node) -> tuple[str, ...]:
        leaves: list[fx.Node] = []
        fx.map_arg(node.args, lambda n: leaves.append(n))
        return tuple(self._value(n, PLAIN) for n in leaves if n.meta.get("val") is not None)

    def _define(self, node: fx.Node, layout: str) -> None:
        self.layouts[node] = {layout}
        self.native[node] = layout
        self.specs[node.name] = TensorSpec(shape(node), layout=layout)

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
        root = find_shuffle(node)
        if root is None and self._views(node):
            return
        root = root or find_root(node) or elementwise_root(node)
        if root is None:
            self._fallback(node)
            return
        pending = _Pending(node, root)
        first = first_step(node) if root.op == "elementwise" else None
        if first is not None:
            pending.steps.append(first)
        self._grow(pending)

    def _views(self, node: fx.Node) -> bool:
        """Whether a node needs no kernel, because its elements lie in the memory of a value."""
        view = find_view(node, self.native)
        if view is not None:
            source, layout = view
            self.aliases[node.name] = source.name
        elif is_alias(node):
            layout = PLAIN
            self.aliases[node.name] = self._value(node.args[0], PLAIN)
        else:
            return False
        self._define(node, layout)
        return True

    def _grow(self, pending: _Pending) -> None:
        """Absorb readers for as long as there is one that fits, then launch or wait for them."""
        current = pending.steps[-1].result if pending.steps else pending.root_node
        while pending.root.op in _EPILOGUES:
            step = self._flip(pending, current) or next_step(current)
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

    def _flip(self, pending: _Pending, current: fx.Node) -> Absorbed | None:
        """The reader that moves the channels of a linear layer's packed image to axis 1."""
        reader = next(iter(current.users), None)
        if pending.root.op != "linear" or self.native.get(pending.root.inputs[0]) != LAST:
            return None
        if len(current.users) != 1 or reader is None or transposition(reader) != TO_FIRST:
            return None
        if pending.flipped or any(step.inputs for step in pending.steps):
            return None
        return Absorbed(FLIP, (reader,))

    def _fits(self, pending: _Pending, step: Absorbed) -> bool:
        if any(n in self.taken for n in step.nodes):
            return False
        if pending.root.op == "concat" and step.inputs:
            return False  # its inputs are its parts
        rank = len(shape(step.result))
        if pending.root.op == "linear" and rank == 4 and step.params and not pending.flipped:
            return False  # its channels are the last axis
        return all(self._operand_fits(pending, step, other) for other in step.inputs)

    def _operand_fits(self, pending: _Pending, step: Absorbed, other: fx.Node) -> bool:
        """Whether an operand can be read by the kernel: its shape, and that it comes in time."""
        mine, theirs = shape(step.result), shape(other)
        linear = pending.root.op == "linear" and not pending.flipped
        if linear and mine != theirs:
            return False
        if len(mine) == 4 and not linear and not same_channels(mine, theirs):
            return False
        late = self.order[other] > self.order[pending.root_node]
        return not (late and theirs == mine and ends_a_layer(other))

    def _launch(self, result: fx.Node, pending: _Pending) -> None:
        """Emit the call of a kernel whose operands all exist by now."""
        root = pending.root
        operands = [*root.inputs, *(n for s in pending.steps for n in s.inputs)]
        steps = [absorbed.step for absorbed in pending.steps if absorbed.step != FLIP]
        params = [p for absorbed in pending.steps for p in absorbed.params]
        if root.bias is not None:
            steps.insert(0, Step("bias"))
            params.insert(0, root.bias)
        if root.weight is not None:
            params.insert(0, root.weight)
        node, out_shape, skipped = self._result(root, result)
        layouts, out_layout = choose_layouts(root, operands, self.native, node, pending.flipped)
        pairs = list(zip(operands, layouts, strict=True))
        workload = Workload(
            root.op,
            tuple(TensorSpec(shape(n), "float32", layout) for n, layout in pairs),
            TensorSpec(out_shape, "float32", out_layout),
            tuple(TensorSpec(shape(p)) for p in params),
            tuple(sorted(root.attrs.items())),
            tuple(steps),
        )
        first = [] if root.op == "elementwise" else [pending.root_node]
        inner = [n for absorbed in pending.steps for n in absorbed.nodes]
        nodes = tuple(n.name for n in (*root.nodes, *first, *inner, *skipped))
        args = tuple(self._value(n, layout) for n, layout in pairs)
        names = tuple(str(p.target) for p in params)
        self.calls.append(Call(pending.root_node.name, workload, args, names, node.name, nodes))
        self._define(node, out_layout)

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
        self.specs[name] = TensorSpec(shape(node), layout=layout)
        if node.op == "get_attr":
            self.constants[name] = str(node.target)
            return name
        before, after = (TensorSpec(shape(node), "float32", kind) for kind in (native, layout))
        workload = Workload("layout", (before,), after)
        self.calls.append(Call(name, workload, (node.name,), (), name, ()))
        return name

    def _fallback(self, node: fx.Node) -> None:
        """Any other call: one kernel through TVM's importer, on plain tensors."""
        call = aten_call(node)
        values = tuple(self._value(n, PLAIN) for n in call.inputs)
        params = tuple(str(p.target) for p in call.params)
        inside = tuple(n.name for n in call.nodes)
        self.calls.append(Call(node.name, call.workload, values, params, node.name, inside))
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
