"""Random networks as graphs of ATen calls: branches, reshapes, shared parameters, several ends.

A network is drawn from a source of choices, Hypothesis in the tests and a seeded generator in
benchmarks/fuzz.py. It is built as the graph that torch.export would capture, at a fraction of
the time; `Network.program` is that program and `Network.module` can be exported as well.
"""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hwprune.program import SYMBOLIC, Program, ProgramModule

T = TypeVar("T")
BATCHES = (2, 3)  # a dimension that differs between them is the batch


class Choices:
    """A source of choices: `below(n)` is an integer from 0 to n - 1, the simplest one 0."""

    def __init__(self, below: Callable[[int], int]) -> None:
        self.below = below

    def pick(self, options: Sequence[T]) -> T:
        """One of them; the first is the simplest."""
        return options[self.below(len(options))]

    def chance(self, one_in: int) -> bool:
        """True once in `one_in` times."""
        return self.below(one_in) == one_in - 1

    def divisor(self, number: int, least: int = 1) -> int:
        """A divisor of `number`, at least `least` where there is one."""
        return self.pick([d for d in range(1, number + 1) if number % d == 0 and d >= least])


@dataclass(frozen=True)
class Value:
    """A node with what it yields for each batch of BATCHES, and what it is at the first batch."""

    node: fx.Node
    results: tuple[Any, ...]
    fixed: fx.Node | int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape at the first batch."""
        return tuple(self.results[0].shape)

    @property
    def channels(self) -> int:
        """The length of the dimension that layers contract: 1 of an image, else the last."""
        return self.shape[1 if len(self.shape) == 4 else -1]


@dataclass(frozen=True)
class Network:
    """A random network and example inputs of two images."""

    module: fx.GraphModule
    inputs: tuple[Tensor, ...]
    program: Program

    def __repr__(self) -> str:
        shapes = {k: tuple(v.shape) for k, v in self.module.state_dict().items()}
        return f"{[tuple(x.shape) for x in self.inputs]} {shapes}\n{self.module.code}"


@dataclass
class Builder:
    """Adds calls to two graphs, running each at once on small tensors.

    One computes its sizes from the batch, as what torch.export captures does; the other, `fixed`,
    is what `specialize` makes of it.
    """

    choices: Choices
    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    fixed: fx.Graph = field(default_factory=fx.Graph)
    fake: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))
    pool: list[Value] = field(default_factory=list)
    parameters: list[Value] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    count: int = 0

    def input(self, *shape: int, words: int = 0) -> Value:
        """An input of (batch, *shape): floats, or integers below `words`."""
        name = f"x{len(self.inputs)}"
        results = tuple(
            torch.randint(0, words, (n, *shape), generator=self.generator)
            if words
            else torch.randn(n, *shape, generator=self.generator, dtype=torch.float64)
            for n in BATCHES
        )
        self.inputs.append(results[0])
        nodes = (self.graph.placeholder(name), self.fixed.placeholder(name))
        return self._mark(Value(nodes[0], results, nodes[1]))

    def call(self, target: Callable[..., Any], *args: Any) -> Value:
        """A call of an operator; arguments may be Values, and lists of them."""
        with torch.no_grad():
            results = tuple(
                target(*_map(args, lambda v, i=i: v.results[i])) for i in range(len(BATCHES))
            )
        node = self.graph.call_function(target, _map(args, lambda v: v.node))
        if isinstance(results[0], int):
            return Value(node, results, results[0])
        fixed = self.fixed.call_function(target, _map(args, lambda v: v.fixed))
        return self._mark(Value(node, results, fixed))

    def aten(self, name: str, *args: Any) -> Value:
        """`call` of `aten.name`, the default overload unless it says which."""
        packet, _, overload = name.partition(".")
        return self.call(getattr(getattr(torch.ops.aten, packet), overload or "default"), *args)

    def items(self, value: Value) -> list[Value]:
        """The outputs of a call that returns several tensors."""
        count = len(value.results[0])
        return [self.call(operator.getitem, value, i) for i in range(count)]

    def batch(self, value: Value) -> Value:
        """The length of a value's first dimension, as a node."""
        return self.aten("sym_size.int", value, 0)

    def parameter(self, *shape: int, scale: float = 1.0, shared: bool = True) -> Value:
        """A parameter; now and then one that is there already, or a second name of it."""
        known = [p for p in self.parameters if p.shape == shape]
        if shared and known and self.choices.chance(3):
            found = self.choices.pick(known)
            if self.choices.chance(2):
                return found
            return self._attribute("weight", found.results[0])
        tensor = torch.randn(*shape, generator=self.generator, dtype=torch.float64) * scale
        made = self._attribute("weight", nn.Parameter(tensor))
        if shared:
            self.parameters.append(made)
        return made

    def buffer(self, tensor: Tensor) -> Value:
        """A buffer that holds `tensor`."""
        return self._attribute("buffer", tensor)

    def _attribute(self, leaf: str, tensor: Tensor) -> Value:
        self.count += 1
        holder = nn.Module()
        self.root.add_module(f"layer{self.count}", holder)
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(leaf, tensor)
        else:
            holder.register_buffer(leaf, tensor)
        name = f"layer{self.count}.{leaf}"
        nodes = (self.graph.get_attr(name), self.fixed.get_attr(name))
        return self._mark(Value(nodes[0], (tensor,) * len(BATCHES), nodes[1]))

    def _mark(self, value: Value) -> Value:
        """Give the fixed node its fake value, and remember which dimensions depend on the batch."""
        small, large = value.results
        dims = frozenset[int]()
        if isinstance(small, Tensor):
            sizes = enumerate(zip(small.shape, large.shape, strict=True))
            dims = frozenset(d for d, (a, b) in sizes if a != b)
        assert isinstance(value.fixed, fx.Node)
        value.fixed.meta[SYMBOLIC] = dims
        value.fixed.meta["val"] = _map_tensors(small, self.fake.from_tensor)
        return value

    def partners(self, value: Value, free: int | None = None) -> list[Value]:
        """Values of the pool of the same shape, but for dimension `free`."""

        def same(other: Value) -> bool:
            if len(other.shape) != len(value.shape):
                return False
            pairs = zip(other.shape, value.shape, strict=True)
            return all(a == b for d, (a, b) in enumerate(pairs) if d != free)

        return [v for v in self.pool if same(v)]

    def finish(self, outputs: Sequence[Value]) -> Network:
        """The network that yields these values."""
        self.graph.output(tuple(v.node for v in outputs))
        self.fixed.output(tuple(v.fixed for v in outputs))
        for graph in (self.graph, self.fixed):
            graph.eliminate_dead_code()
        module = fx.GraphModule(self.root, self.graph)
        fixed = ProgramModule(self.root, self.fixed, class_name="Program").eval()
        program = Program(fixed, tuple(self.inputs), "random", dynamic_batch=False)
        return Network(module, program.inputs, program)


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    return type(value)(map(function, value))


def _map(args: Any, function: Callable[[Value], Any]) -> Any:
    if isinstance(args, Value):
        return function(args)
    if isinstance(args, list | tuple):
        return type(args)(_map(a, function) for a in args)
    return args


def random_network(choices: Choices, largest: int = 7) -> Network:
    """A network of up to `largest` blocks, one to three inputs and one to three outputs."""
    from tests import random_statistics  # noqa: F401 - its blocks
    from tests.random_blocks import BLOCKS, head, inputs

    build = Builder(choices)
    build.pool = inputs(build)
    for _ in range(1 + choices.below(largest)):
        recent = build.pool[::-1][:4]
        value = choices.pick(recent)
        block = choices.pick(BLOCKS[len(value.shape)])
        made = block(build, value)
        if 0 < math.prod(made.shape) <= 4096:
            build.pool.append(made)
    ends = [build.pool[-1 - i] for i in range(min(1 + choices.below(3), len(build.pool)))]
    return build.finish([head(build, value) for value in ends])


def seeded(seed: int) -> Network:
    """The random network of a seed, the same on every machine."""
    return random_network(Choices(random.Random(seed).randrange))
