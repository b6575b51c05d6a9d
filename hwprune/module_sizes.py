"""The sizes that an `nn.Module` keeps in attributes, as they are once its parameters are smaller.

Layers of torch.nn are known by type. Of other modules the attributes with usual names are
looked at: one that equals a size of the module's own calls becomes what that size became.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from hwprune.program import Program

Shapes = Mapping[str, tuple[int, ...]]
Sizes = dict[str, Any]

USUAL_NAMES = frozenset(
    [
        "num_heads", "n_heads", "n_head", "nhead", "heads", "num_attention_heads",
        "num_key_value_heads", "num_kv_heads", "head_dim", "head_size", "attention_head_size",
        "all_head_size", "attn_dim", "inner_dim", "embed_dim", "kdim", "vdim", "hidden_size",
        "hidden_dim", "dim", "width", "channels", "num_channels", "num_features", "groups",
        "in_channels", "out_channels", "in_features", "out_features", "embedding_dim",
        "split_size",
    ]
)  # fmt: skip
"""Attributes of any module that name a number of channels, heads or groups."""


@dataclass
class Calls:
    """What one module called in the smaller graph, and which sizes of its calls changed."""

    nodes: list[fx.Node] = field(default_factory=list)
    changed: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))

    def argument(self, operator: str, position: int) -> Any:
        """An argument of the first call of an operator; None if there is none."""
        for node in self.nodes:
            if str(node.target).startswith(f"aten.{operator}") and len(node.args) > position:
                return node.args[position]
        return None


def module_calls(dense: Program, smaller: Program) -> dict[str, Calls]:
    """The calls of every module by its dotted name ("" is the whole model)."""
    before = {node.name: node for node in dense.module.graph.nodes}
    calls: dict[str, Calls] = defaultdict(Calls)
    for node in smaller.module.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if node.op != "call_function" or not stack:
            continue
        path, _ = list(stack.values())[-1]
        calls[path].nodes.append(node)
        if node.name in before:
            for old, new in changed_sizes(before[node.name], node):
                calls[path].changed[old].add(new)
    return dict(calls)


def changed_sizes(before: fx.Node, after: fx.Node) -> list[tuple[int, int]]:
    """The integers of a call that are others in the smaller graph: (old, new)."""
    if _is_split(before) and len(set(sizes := list(_integers(after.args[1])))) == 1:
        return [(int(before.args[1]), sizes[0])]  # type: ignore[arg-type]
    old, new = (list(_integers([*n.args, *n.kwargs.values()])) for n in (before, after))
    if before.target != after.target or len(old) != len(new):
        return []
    return [(a, b) for a, b in zip(old, new, strict=True) if a != b]


def _is_split(node: fx.Node) -> bool:
    """Whether a call cuts a tensor into pieces of one size."""
    return str(node.target).startswith("aten.split.") and isinstance(node.args[1], int)


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _integers(part)
    elif type(value) is int:
        yield value


def new_sizes(module: nn.Module, shapes: Shapes, calls: Calls) -> Sizes:
    """The attributes of one module that must change, with their new values.

    `shapes` are those of its own parameters and buffers once they are smaller, by leaf name.
    """
    wanted: Sizes = {}
    for kind, function in _KINDS:
        if isinstance(module, kind):
            wanted = function(module, shapes, calls)
            break
    else:
        wanted = _by_name(module, calls)
        if "nf" in vars(module) and len(shapes.get("weight", ())) == 2:
            wanted |= dict(zip(("nx", "nf"), shapes["weight"], strict=True))  # GPT-2's linear layer
    return {k: v for k, v in wanted.items() if v is not None and getattr(module, k, v) != v}


def _by_name(module: nn.Module, calls: Calls) -> Sizes:
    found: Sizes = {}
    for name in USUAL_NAMES & vars(module).keys():
        value = vars(module)[name]
        new = calls.changed.get(value, set()) if type(value) is int else set()
        if len(new) == 1:
            found[name] = next(iter(new))
    return found


def _conv(module: nn.Module, shapes: Shapes, calls: Calls) -> Sizes:
    first, second = shapes["weight"][:2]
    groups = calls.argument("conv", 6)
    groups = int(groups if groups is not None else module.groups)  # type: ignore[arg-type]
    if module.transposed:
        return {"in_channels": first, "out_channels": second * groups, "groups": groups}
    return {"in_channels": second * groups, "out_channels": first, "groups": groups}


def _linear(module: nn.Module, shapes: Shapes, calls: Calls) -> Sizes:
    return dict(zip(("out_features", "in_features"), shapes["weight"], strict=True))


def _bilinear(module: nn.Module, shapes: Shapes, calls: Calls) -> Sizes:
    names = ("out_features", "in1_features", "in2_features")
    return dict(zip(names, shapes["weight"], strict=True))


def _batch_norm(module: nn.Module, shapes: Shapes, calls: Calls) -> Sizes:
    shape = shapes.get("weight") or shapes.get("running_mean")
    return {"num_features": shape[0]} if shape else {}


def _layer_norm(module: nn.Module, shapes: Shapes, calls: Calls) -> Sizes:
    shape: Sequence[int] | None = shapes.get("weight")
    for name in ("layer_norm", "rms_norm"):
        shape = shape or calls.argument(name, 1)
    return {"normalized_shape": tuple(shape) if shape else None}


def _group_norm(module: nn.Module, shapes: Shapes, calls: Calls) -> Sizes:
    size = shapes["weight"][0] if "weight" in shapes else None
    return {"num_channels": size, "num_groups": calls.argument("group_norm", 1)}


def _embedding(module: nn.Module, shapes: Shapes, calls: Calls) -> Sizes:
    return dict(zip(("num_embeddings", "embedding_dim"), shapes["weight"], strict=True))


def _prelu(module: nn.Module, shapes: Shapes, calls: Calls) -> Sizes:
    return {"num_parameters": shapes["weight"][0]}


def _attention(module: nn.Module, shapes: Shapes, calls: Calls) -> Sizes:
    view = calls.argument("view", 1)
    if not view or not isinstance(view[-1], int):
        return _by_name(module, calls)
    packed = "in_proj_weight" in shapes
    rows, width = shapes["in_proj_weight" if packed else "q_proj_weight"]
    keys, values = (shapes.get(f"{name}_proj_weight", (0, width))[1] for name in "kv")
    heads = (rows // 3 if packed else rows) // view[-1]
    sizes = {"kdim": keys, "vdim": values, "head_dim": view[-1]}
    return {"embed_dim": width, "num_heads": heads, **sizes}


def _unflatten(module: nn.Module, shapes: Shapes, calls: Calls) -> Sizes:
    size = calls.argument("unflatten", 2)
    if size is None:
        size = (calls.argument("view", 1) or [])[int(module.dim) :][:  # type: ignore[arg-type]
            len(module.unflattened_size)  # type: ignore[arg-type]
        ]  # fmt: skip
    fits = size and all(isinstance(s, int) for s in size)
    return {"unflattened_size": tuple(size) if fits else None}


def _recurrent(module: nn.Module, shapes: Shapes, calls: Calls) -> Sizes:
    hidden = shapes.get("weight_hr_l0", shapes["weight_hh_l0"])[1]
    return {"input_size": shapes["weight_ih_l0"][1], "hidden_size": hidden}


_KINDS: list[tuple[type[nn.Module], Callable[[nn.Module, Shapes, Calls], Sizes]]] = [
    (nn.modules.conv._ConvNd, _conv),
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    (nn.modules.batchnorm._NormBase, _batch_norm),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (nn.PReLU, _prelu),
    (nn.Unflatten, _unflatten),
    (nn.MultiheadAttention, _attention),
    (nn.RNNBase, _recurrent),
]
