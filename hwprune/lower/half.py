"""A network in float16: its kernel calls with values and weights of two bytes, and its range.

In: the `Fused` calls of a folded `Program`. Out: `Fused` as an Arm core computes it. Inputs and
outputs of the network stay float32, and so does what no rule computes in float16 (softmax, norms,
operators of the fallback): a cast stands at each border.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from hwprune.capture import Program
from hwprune.errors import LoweringError
from hwprune.lower.functional import place
from hwprune.lower.fuse import Fused
from hwprune.lower.spec import PLAIN, Call, TensorSpec, Workload
from hwprune.target import FLOAT16, FLOAT32

LARGEST = 65504.0  # finite in IEEE 754 binary16
INSTEAD = "compile it in float32"
RULES = frozenset(
    (
        "conv2d", "expand_depthwise", "linear", "matmul", "max_pool2d",
        "avg_pool2d", "global_avg_pool", "elementwise", "concat", "slice", "roll", "shuffle",
        "layout",
    )
)  # fmt: skip


def halved(fused: Fused, program: Program) -> Fused:
    """The network in float16; `program` is the folded one.

    Raises LoweringError naming the operator and the user's line where it can be computed neither in
    float16 nor between casts.
    """
    nodes = {node.name: node for node in program.module.graph.nodes}
    narrow = _Narrow(fused, nodes)
    for name in fused.inputs:
        if _real(nodes[name]):
            narrow.input(name)
    for call in fused.calls:
        narrow.add(call)
    outputs = tuple(map(narrow.wide, fused.outputs))
    specs = {name: replace(spec, dtype=FLOAT16) for name, spec in fused.specs.items()}
    return replace(
        fused,
        calls=tuple(narrow.calls),
        aliases={name: narrow.inputs.get(base, base) for name, base in fused.aliases.items()},
        outputs=outputs,
        specs=specs | {call.output: call.workload.output for call in narrow.calls},
    )


class _Narrow:
    """The calls of a network in float16, with casts where it meets float32."""

    def __init__(self, fused: Fused, nodes: Mapping[str, fx.Node]) -> None:
        self.fused, self.nodes = fused, nodes
        self.calls: list[Call] = []
        self.inputs: dict[str, str] = {}  # of the network, and their names in float16
        self.widened: dict[str, str] = {}  # values that also exist in float32

    def input(self, name: str) -> None:
        """An input of the network, which comes in float32."""
        self.inputs[name] = self._cast(name, f"{name}@{FLOAT16}", self.fused.specs[name], FLOAT16)
        self.widened[name] = name

    def add(self, call: Call) -> None:
        """A call of the network: in float16 by a rule, else in float32 between casts."""
        work = call.workload
        if work.op in RULES:
            inputs, params = (tuple(map(_half, specs)) for specs in (work.inputs, work.params))
            shrunk = replace(work, inputs=inputs, output=_half(work.output), params=params)
            args = tuple(self.inputs.get(name, name) for name in call.args)
            self.calls.append(replace(call, workload=shrunk, args=args))
            return
        if any(spec.layout != PLAIN for spec in (*work.inputs, work.output)):
            where = place(self.nodes[call.output.partition("@")[0]])
            raise LoweringError(
                f"no rule computes this {work.op} in float16", where=where, hint=INSTEAD
            )
        args = tuple(
            self.wide(name) if spec.dtype == FLOAT32 else name
            for name, spec in zip(call.args, work.inputs, strict=True)
        )
        if work.output.dtype != FLOAT32:
            self.calls.append(replace(call, args=args))
            return
        made = self.widened[call.output] = f"{call.output}@{FLOAT32}"
        self.calls.append(replace(call, name=made, args=args, output=made))
        self._cast(made, call.output, work.output, FLOAT16)

    def wide(self, name: str) -> str:
        """The name of a value in float32."""
        if name not in self.widened:
            self.widened[name] = self._cast(
                name, f"{name}@{FLOAT32}", self.fused.specs[name], FLOAT32
            )
        return self.widened[name]

    def _cast(self, name: str, made: str, spec: TensorSpec, dtype: str) -> str:
        """Give a row-major value in another type under the name `made`."""
        before = FLOAT32 if dtype == FLOAT16 else FLOAT16
        shapes = (TensorSpec(spec.shape, before, PLAIN),), TensorSpec(spec.shape, dtype, PLAIN)
        label = made if "@" in made else f"{made}@cast"
        self.calls.append(Call(label, Workload("elementwise", *shapes), (name,), (), made, ()))
        return made


def _half(spec: TensorSpec) -> TensorSpec:
    return replace(spec, dtype=FLOAT16)


def _real(node: fx.Node) -> bool:
    val = node.meta.get("val")
    return isinstance(val, Tensor) and val.is_floating_point()


@dataclass(frozen=True)
class Reach:
    """The largest magnitude of a network's values in float32, and where it is."""

    value: float
    where: str


def stored(fused: Fused) -> frozenset[str]:
    """The values of the graph that a GPU's kernels write: all between is float32 in registers."""
    return frozenset((*fused.inputs, *(c.output.partition("@")[0] for c in fused.calls)))


def check_range(
    program: Program, images: Tensor | None = None, only: Collection[str] | None = None
) -> Reach:
    """The largest value that a folded program computes on its example inputs and on `images`.

    `images` (N, ...) are taken in batches of the program's size, the first again to fill the last;
    `only` these values of the graph count, by name, if given.

    Raises LoweringError naming the first layer whose values, or the first parameter that, float16
    cannot hold.
    """
    for name, tensor in program.module.state_dict().items():
        if tensor.is_floating_point():
            _check(_largest(tensor), f"the parameter {name}")
    watch = _Watch(program.module, only)
    with torch.no_grad():
        watch.run(*program.inputs)
        for batch in _batches(images, program.inputs):
            watch.run(batch)
    return watch.reach


def _batches(images: Tensor | None, inputs: Sequence[Tensor]) -> Iterator[Tensor]:
    """Batches as large as that of the only input."""
    if images is None:
        return
    (example,) = inputs
    size = len(example)
    for begin in range(0, len(images), size):
        yield images[torch.arange(begin, begin + size) % len(images)]


class _Watch(fx.Interpreter):
    """Runs a graph and notes the largest value; refuses the first that is too large."""

    def __init__(self, module: fx.GraphModule, only: Collection[str] | None) -> None:
        super().__init__(module)
        self.only = only
        self.reach = Reach(0.0, "nowhere")

    def run_node(self, n: fx.Node) -> object:
        """Run a node and look at its tensors."""
        result = super().run_node(n)
        counts = n.op != "output" and (self.only is None or n.name in self.only)
        if counts and isinstance(result, Tensor) and result.is_floating_point():
            value = _largest(result)
            _check(value, f"a value of {n.name}", place(n))
            if value > self.reach.value:
                self.reach = Reach(value, f"{n.name}, {place(n)}")
        return result


def _largest(tensor: Tensor) -> float:
    """The largest magnitude that is finite: float16 has the infinities of masks."""
    found = tensor.abs()
    return float(found[found.isfinite()].amax()) if bool(found.isfinite().any()) else 0.0


def _check(value: float, what: str, where: str = "") -> None:
    if value > LARGEST:
        raise LoweringError(
            f"{what} is {value:.3g}, and float16 ends at {LARGEST:.0f}",
            where=where,
            hint="scale it down, or compile in float32",
        )
