"""`Program`: the captured network that every stage reads, and questions asked of its nodes.

A `Program` is an ATen graph that runs, trains, copies and saves without the user's classes.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from hwprune.fakes import run_fake
from hwprune.symbols import Unknown, concrete_values

# Position of the `training` argument of the operators that behave differently in training.
TRAINING_ARG: dict[str, int] = {
    "aten.batch_norm": 5,
    "aten.instance_norm": 5,
    "aten.dropout": 2,
    "aten.dropout_": 2,
    "aten.feature_dropout": 2,
    "aten.feature_dropout_": 2,
    "aten.alpha_dropout": 2,
    "aten.alpha_dropout_": 2,
    "aten.feature_alpha_dropout": 2,
    "aten.feature_alpha_dropout_": 2,
    "aten.rrelu": 3,
}

SYMBOLIC = "hwprune_symbolic_dims"
FIXED_TRAINING = "hwprune_fixed_training"


class ProgramModule(fx.GraphModule):
    """A captured graph whose `train()` and `eval()` do what they did on the original.

    They flip the training argument of batch-norm and dropout nodes and recompile. Nodes
    that were in training mode in an evaluated model (dropout that is always on, batch norm
    without running statistics) stay as they are. Buffers of its layers that the graph does not
    read (how many batches a batch norm has seen) and other names of tied parameters are kept, so
    that state dicts fit the model's.
    """

    def __init__(self, root: Any, graph: fx.Graph, class_name: str = "Program") -> None:
        super().__init__(root, graph, class_name)
        if isinstance(root, nn.Module):
            carry_buffers(root, self)
            carry_ties(root, self)

    def _deepcopy_init(self) -> Callable[..., None]:
        return ProgramModule.__init__

    def train(self, mode: bool = True) -> ProgramModule:
        """Switch batch norm and dropout to training (or evaluation) behaviour."""
        super().train(mode)
        changed = False
        for node in self.graph.nodes:
            position = training_position(node)
            if (
                position is None
                or node.meta.get(FIXED_TRAINING, False)
                or node.args[position] == mode
            ):
                continue
            node.update_arg(position, mode)
            changed = True
        if changed:
            self.recompile()
        return self


@dataclass(frozen=True)
class Program:
    """A captured network: an ATen graph that runs, trains and saves.

    `module` is the unlifted GraphModule of torch.export (parameters and buffers as `get_attr`
    nodes under their original dotted names; every tensor node has a fake tensor in
    `meta["val"]`). `inputs` are the example inputs, batch first.
    """

    module: fx.GraphModule
    inputs: tuple[Tensor, ...]
    name: str
    dynamic_batch: bool


def build_program(
    module: fx.GraphModule, inputs: tuple[Tensor, ...], name: str, dynamic_batch: bool
) -> Program:
    """A `Program` around a graph module with fake values in `meta["val"]`, in eval mode."""
    graph_module = ProgramModule(module, module.graph, class_name="Program")
    graph_module.eval()
    return Program(graph_module, inputs, name, dynamic_batch)


def carry_buffers(source: nn.Module, module: nn.Module) -> None:
    """Give the layers of `module` the saved buffers that they have in `source` and not yet here."""
    for path, layer in module.named_modules():
        with contextlib.suppress(AttributeError):
            for name, buffer in source.get_submodule(path)._buffers.items():
                saved = name not in source.get_submodule(path)._non_persistent_buffers_set
                if saved and not hasattr(layer, name):
                    layer.register_buffer(name, buffer)


def carry_ties(source: nn.Module, module: nn.Module) -> None:
    """Give the parameters of `module` the other names that they have in `source`."""
    held = dict(module.named_parameters(remove_duplicate=False))
    listed = list(source.named_parameters(remove_duplicate=False))
    first = {id(tensor): held[name] for name, tensor in listed if name in held}
    for name, tensor in listed:
        if name in held or id(tensor) not in first:
            continue
        owner: nn.Module = module
        *path, leaf = name.split(".")
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(leaf, first[id(tensor)])  # type: ignore[arg-type]


def tensor_value(node: fx.Node) -> Tensor | None:
    """The fake tensor of a node, or None where it yields no single tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def symbolic_dims(node: fx.Node) -> frozenset[int]:
    """The dimensions whose size was not fixed when the program was captured (the batch)."""
    if SYMBOLIC in node.meta:
        return frozenset(node.meta[SYMBOLIC])
    value = tensor_value(node)
    if value is None:
        return frozenset()
    return frozenset(d for d, size in enumerate(value.shape) if not isinstance(size, int))


def get_tensor(module: nn.Module, target: str) -> Any:
    """The parameter, buffer or submodule under a dotted name."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def source_line(node: fx.Node) -> str:
    """`file:line  code` of the user's line that made a node; empty if it is not known."""
    trace = str(node.meta.get("stack_trace") or "")
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n?([^\n]*)', trace)
    own = f"{Path(torch.__file__).parent}{os.sep}"
    users = [f for f in frames if not f[0].startswith(own) and not f[0].startswith("<eval_with")]
    if not users:
        return ""
    file, line, code = users[-1]
    return f"{short_path(file)}:{line}  {code.strip()}".rstrip()


def fingerprint(program: Program) -> str:
    """A hash of the graph's structure and the names and shapes of what it reads, not the values."""
    digest = hashlib.sha256()
    order = {node: i for i, node in enumerate(program.module.graph.nodes)}

    def plain(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return {"node": order[value]}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        return value if isinstance(value, int | float | bool | str | None) else str(value)

    for node in program.module.graph.nodes:
        args = list(node.args)
        position = training_position(node)
        if position is not None and not node.meta.get(FIXED_TRAINING, False):
            args[position] = None
        digest.update(json.dumps([node.op, str(node.target), plain(args)]).encode())
        digest.update(json.dumps(plain(node.kwargs), sort_keys=True).encode())
    read = {str(node.target) for node in program.module.graph.nodes if node.op == "get_attr"}
    state: dict[str, Tensor] = {k: v for k, v in program.module.state_dict().items() if k in read}
    for key in sorted(state):
        digest.update(f"{key}{tuple(state[key].shape)}{state[key].dtype}".encode())
    return digest.hexdigest()[:32]


def specialize(program: Program) -> Program:
    """The same graph (same node names) with every size a plain int for `program.inputs`.

    Symbolic size arithmetic is evaluated and removed; `meta["val"]` holds fake tensors of
    concrete shapes. Parameters are shared with `program`, not copied. Which dimensions were
    symbolic is remembered (`symbolic_dims`), so that both programs couple alike.
    """
    graph = copy_graph(program)
    values = _values(program, graph)
    _hold(graph, values)
    _inline_numbers(graph, values)
    module = ProgramModule(program.module, graph, class_name="Program")
    module.training = program.module.training
    return Program(module, program.inputs, program.name, dynamic_batch=False)


def _values(program: Program, graph: fx.Graph) -> dict[fx.Node, Any]:
    """What every node of a copy of a program's graph yields at the sizes of the inputs."""
    attributes = _attributes(program.module, graph)
    try:
        return concrete_values(graph, attributes, program.inputs)
    except Unknown:
        return run_fake(graph, attributes, program.inputs)


def propagate(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[fx.Node, Any]:
    """What every node yields at the sizes of `inputs`, found by running it, also in `meta["val"]`.

    Tensors are fake, one for all that look alike. Which dimensions were symbolic before stays
    known (`symbolic_dims`).
    """
    values = run_fake(module.graph, _attributes(module, module.graph), inputs)
    _hold(module.graph, values)
    return values


def _attributes(module: nn.Module, graph: fx.Graph) -> dict[fx.Node, Any]:
    """What the `get_attr` nodes of a graph hold."""
    read = [node for node in graph.nodes if node.op == "get_attr"]
    return {node: get_tensor(module, str(node.target)) for node in read}


def _hold(graph: fx.Graph, values: dict[fx.Node, Any]) -> None:
    """Put values into `meta["val"]`, and remember which of their dimensions were symbolic."""
    for node in graph.nodes:
        if node.op != "output":
            node.meta[SYMBOLIC] = symbolic_dims(node)
            if not isinstance(values[node], fx.GraphModule):
                node.meta["val"] = values[node]


def copy_graph(program: Program) -> fx.Graph:
    """A copy of a program's graph with the same node names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own pytree records
        return copy.deepcopy(program.module.graph)


def _inline_numbers(graph: fx.Graph, values: dict[fx.Node, Any]) -> None:
    """Replace the uses of computed sizes by their value and drop the nodes that made them."""

    def literal(node: fx.Node) -> Any:
        value = values.get(node, node)
        return value if isinstance(value, int | float | bool) else node

    for node in graph.nodes:
        node.args = fx.map_arg(node.args, literal)
        node.kwargs = fx.map_arg(node.kwargs, literal)
    for node in reversed(list(graph.nodes)):
        removable = isinstance(values.get(node), int | float | bool | None)
        if node.op == "call_function" and not node.users and removable:
            graph.erase_node(node)


def training_position(node: fx.Node) -> int | None:
    """Where the training argument of a node is, or None if it has none to flip."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    position = TRAINING_ARG.get(str(node.target.overloadpacket))
    if position is None or len(node.args) <= position:
        return None
    normalises = "norm" in str(node.target)
    return None if normalises and node.args[3] is None else position


def short_path(file: str) -> str:
    """A path that reads well in a report: from the installed package or the working directory."""
    if "site-packages/" in file:
        return file.split("site-packages/")[-1]
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
