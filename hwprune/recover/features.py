"""Features to distil: values inside the pruned network beside those of the dense, by channel.

In: a dense and a smaller program with the plan between them. Out: both as modules that give their
features with their outputs, and the error between the channels that both have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from hwprune.coupling import Coupling
from hwprune.errors import HwpruneError
from hwprune.plan import Plan
from hwprune.program import Program, ProgramModule, copy_graph, tensor_value

_ENDS = ("add", "relu", "hardtanh", "gelu", "silu", "hardswish")  # of layers, as graphs name them


@dataclass(frozen=True)
class Features:
    """Modules that return (outputs, features); `student` shares its tensors with the network.

    `kept[i]` lists by dimension which positions of the teacher's i-th feature the student has.
    """

    student: nn.Module
    teacher: nn.Module
    nodes: tuple[str, ...]
    kept: tuple[dict[int, Tensor], ...]

    def error(self, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Mean over the features of squared error over the mean square of the teacher's."""
        errors = []
        for ours, theirs, kept in zip(found, wanted, self.kept, strict=True):
            target = theirs.float()
            for dim, index in kept.items():
                target = target.index_select(dim, index.to(target.device))
            scale = target.square().mean().clamp_min(1e-12)
            errors.append((ours.float() - target).square().mean() / scale)
        return torch.stack(errors).mean()

    def check(self, module: nn.Module) -> None:
        """Raise HwpruneError unless `module` is the network whose features these are."""
        mine = {id(p) for p in self.student.parameters()}
        if not mine <= {id(p) for p in module.parameters()}:
            raise HwpruneError(
                "are of another network than the one that is trained",
                where="features",
                hint="train the smaller program's own module",
            )


def features(
    dense: Program, smaller: Program, coupling: Coupling, plan: Plan, *, count: int = 3
) -> Features:
    """Pair `count` values, evenly spread over the depth of both networks.

    `coupling` and `plan` are those of the dense program, as in a `PruneResult`. Raises HwpruneError
    where no value is in both.
    """
    if plan.then is not None:
        raise HwpruneError("the plan has two stages", where="features", hint="prune one form")
    if type(count) is not int or count < 1:
        raise HwpruneError(f"{count!r} features", where="features", hint="at least 1")
    mask = coupling.unit_mask(plan.kept)
    there = {n.name: n for n in smaller.module.graph.nodes}
    pairs: list[tuple[str, dict[int, Tensor]]] = []
    for node in dense.module.graph.nodes:
        value = tensor_value(node)
        if not _ends(node) or value is None or node.name not in there:
            continue
        found = {d: coupling.kept(node.name, d, mask) for d in range(1, value.ndim)}
        pairs.append(
            (node.name, {d: torch.from_numpy(k.nonzero()[0]) for d, k in found.items()
                         if k is not None and not k.all()})
        )  # fmt: skip
    if not pairs:
        raise HwpruneError("no layer's end is in both networks", where="features")
    places = sorted({round((i + 1) * len(pairs) / count) - 1 for i in range(count)})
    chosen = [pairs[max(p, 0)] for p in places]
    names = tuple(name for name, _ in chosen)
    student, teacher = _telling(smaller, names), _telling(dense, names)
    return Features(student, teacher, names, tuple(kept for _, kept in chosen))


def _ends(node: fx.Node) -> bool:
    """Whether a node ends a layer: a value of three or more dimensions, not of weights alone."""
    value = tensor_value(node)
    name = str(node.target).removeprefix("aten.").partition(".")[0].rstrip("_")
    return (
        node.op == "call_function"
        and name in _ENDS
        and value is not None
        and value.is_floating_point()
        and value.ndim > 2
    )


def _telling(program: Program, names: Sequence[str]) -> nn.Module:
    """The program as a module that returns (outputs, features); tensors are shared."""
    graph = copy_graph(program)
    by_name = {node.name: node for node in graph.nodes}
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = ((output.args[0], tuple(by_name[name] for name in names)),)
    codegen = torch.fx.graph.CodeGen()  # the outputs are no longer those that were exported
    graph.set_codegen(codegen)
    return ProgramModule(program.module, graph, class_name="Program")
