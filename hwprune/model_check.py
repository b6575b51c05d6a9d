"""What a module and its example inputs must be before anything is captured.

Each refusal is one ModelError that names the layer and the source line of the user's class.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._pytree import tree_leaves

from hwprune.errors import ModelError
from hwprune.program import short_path, source_line

_QUANTISED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.qat",
    "torch.ao.nn.intrinsic.qat",
    "torch.ao.quantization.observer",
    "torch.ao.quantization.fake_quantize",
)
_SYMBOLIC = (Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)


def check_model(model: Any) -> None:
    """ModelError unless this is a module of ordinary, initialised, real tensors with values."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"a {type(model).__name__} is not a model", hint="pass an nn.Module")
    for path, module in model.named_modules():
        kind = type(module)
        if any(nn.parameter.is_lazy(p) for p in module.parameters(recurse=False)):
            raise ModelError(
                f"{path or 'the model'} ({kind.__name__}) is lazy and not initialised",
                where=_place(model, path),
                hint="run the model once on an example",
            )
        if kind.__module__.startswith(_QUANTISED):
            raise ModelError(
                f"{path or 'the model'} ({kind.__name__}) is quantised",
                where=_place(model, path),
                hint="prune the floating-point model, then quantise",
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{path or 'the model'} ({kind.__name__}) is TorchScript",
                where=_place(model, path) if path else "",
                hint="pass the nn.Module that it was made from",
            )
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        _check_tensor(model, name, tensor)


def _check_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        what, hint = "is on the meta device: it has no values", "load the weights first"
    elif tensor.is_complex():
        what, hint = "is complex, which cannot be pruned", "keep its real and imaginary parts"
    elif tensor.is_quantized:
        what, hint = "is quantised", "prune the floating-point model, then quantise"
    elif tensor.layout is not torch.strided:
        what, hint = "is sparse", "make it dense with to_dense()"
    else:
        return
    raise ModelError(f"{name} {what}", where=_place(model, name.rpartition(".")[0]), hint=hint)


def check_module_inputs(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """ModelError naming the first example input that is no tensor, empty, or elsewhere."""
    devices = {t.device for t in (*model.parameters(), *model.buffers())}
    for i, given in enumerate(inputs):
        if not isinstance(given, Tensor):
            raise ModelError(
                f"a {type(given).__name__} is not a tensor",
                where=f"inputs[{i}]",
                hint="pass a tuple of tensors",
            )
        if devices and given.device not in devices:
            raise ModelError(
                f"is on {given.device}, the model on {next(iter(devices))}",
                where=f"inputs[{i}]",
                hint="move one of them",
            )
    check_input_sizes(inputs)


def check_finite(*tensors: Mapping[str, Tensor]) -> None:
    """ModelError naming the first parameter or buffer that holds NaN or infinity."""
    for name, tensor in ((n, t) for group in tensors for n, t in group.items()):
        if tensor.is_floating_point() and not _is_finite(tensor.detach()):
            if bool(torch.isnan(tensor).any()):
                raise ModelError("the weights contain NaN", where=name)
            bound = tensor.numel() == 1 and not isinstance(tensor, nn.Parameter)
            if "mask" not in name and not bound:  # additive masks and limits of clamps are infinite
                raise ModelError("the weights contain infinite values", where=name)


def _is_finite(tensor: Tensor) -> bool:
    """Whether all elements are: surely where their sum is, which takes a tenth of the time."""
    summed = tensor.dtype in (torch.float32, torch.float64) and bool(torch.isfinite(tensor.sum()))
    return summed or bool(torch.isfinite(tensor).all())


def check_values(graph: fx.Graph) -> None:
    """ModelError naming the first call of a captured graph whose sizes depend on values."""
    for node in graph.nodes:
        known = [v for v in tree_leaves(node.meta.get("val")) if isinstance(v, _SYMBOLIC)]
        if node.op == "call_function" and free_unbacked_symbols(known):
            raise ModelError(
                f"sizes depend on values (operator {node.target})",
                where=source_line(node),
                hint="select by value outside the model",
            )


def check_input_sizes(inputs: tuple[Tensor, ...]) -> None:
    """ModelError naming the first example input that has no elements."""
    for i, given in enumerate(inputs):
        if isinstance(given, Tensor) and given.numel() == 0:
            raise ModelError(
                f"the input of shape {tuple(given.shape)} has no elements",
                where=f"inputs[{i}]",
                hint="every size must be at least 1",
            )


def mixes_types(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether an input has another type than every floating-point parameter."""
    known = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return bool(known) and any(x.dtype not in known for x in inputs)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of a module that holds results of its own (the weight of `weight_norm`)."""
    held = [tree_leaves(list(vars(module).values())) for module in model.modules()]
    made = [x for values in held for x in values if isinstance(x, Tensor) and not x.is_leaf]
    return copy.deepcopy(model, {id(x): x.detach().clone() for x in made})


def _place(model: nn.Module, path: str) -> str:
    """`file:line` of the innermost user's class that the module at `path` belongs to."""
    parts = path.split(".") if path else []
    for count in range(len(parts), -1, -1):
        kind = type(model.get_submodule(".".join(parts[:count])))
        if not f"{kind.__module__}.".startswith("torch."):
            try:
                file, line = inspect.getsourcefile(kind), inspect.getsourcelines(kind)[1]
            except (OSError, TypeError):  # made where there is no file
                continue
            return f"{short_path(str(file))}:{line}"
    return ""
