"""In place: the user's own `nn.Module` + a smaller `Program` -> that module, smaller.

Its parameters and buffers become the program's, its attributes follow (`module_sizes`). All is
tried on a copy first, which must compute what the program does; else nothing is changed.
"""

from __future__ import annotations

import linecache
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from hwprune.capture import first_line, user_frame
from hwprune.compare import TOLERANCE, random_inputs
from hwprune.errors import ModelError
from hwprune.model_check import copied
from hwprune.module_sizes import Calls, changed_sizes, module_calls, new_sizes
from hwprune.program import Program, source_line
from hwprune.verify import double, perturb

SINGLE_TOLERANCE = 1e-4  # where the model's Python does not run in float64
_HINT = "take result.module instead, or let the size follow a layer's attribute"


@dataclass(frozen=True)
class Change:
    """What becomes of a model: tensors by every name they have, attributes by module and name."""

    tensors: dict[str, Tensor]
    attributes: dict[tuple[str, str], Any]


def apply_in_place(model: nn.Module, dense: Program, smaller: Program) -> nn.Module:
    """Make `model`, which `dense` was captured from, the smaller network; returns it.

    Parameters are replaced by copies of the smaller program's (tied ones stay tied), so
    optimisers must be made anew. Raises ModelError, naming the source line, where the module's
    Python does not follow its attributes, or where it is not the model that was captured;
    it is then as it was.
    """
    _check_same(model, dense)
    change = _change(model, dense, smaller)
    trial = copied(model)
    _make(trial, change)
    _check(model, trial, dense, smaller)
    _make(model, change)
    return model


def _named(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name they have."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _check_same(model: nn.Module, dense: Program) -> None:
    """ModelError unless the model has the dense program's parameters."""
    found = _named(model)
    for name, parameter in dense.module.named_parameters():
        if name not in found:
            raise ModelError("the model that was pruned has this parameter, this one not",
                             where=name)  # fmt: skip
        if found[name].shape != parameter.shape:
            raise ModelError(
                f"has shape {tuple(found[name].shape)}, in the model that was pruned "
                f"{tuple(parameter.shape)}",
                where=name,
                hint="pass the model as it was before pruning",
            )


def _change(model: nn.Module, dense: Program, smaller: Program) -> Change:
    """All that has to change, by name."""
    tensors = _matching(model, smaller.module)
    shapes: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, tensor in _named(model).items():
        owner, _, leaf = name.rpartition(".")
        shape = tuple(tensors.get(name, tensor).shape)
        shapes[owner][leaf] = shape
        layer = owner.removesuffix(".parametrizations.weight")
        if _makes_weight(model.get_submodule(layer), tensor):
            shapes[layer]["weight"] = shape
    calls = module_calls(dense, smaller)
    attributes = {
        (path, name): value
        for path, module in model.named_modules(remove_duplicate=False)
        for name, value in new_sizes(module, shapes[path], calls.get(path, Calls())).items()
    }
    return Change(tensors, attributes)


def _makes_weight(layer: nn.Module, tensor: Tensor) -> bool:
    """Whether a layer's weight is computed of this tensor, which has its shape (a weight norm)."""
    computed = isinstance(layer, nn.Linear | _ConvNd) and "weight" not in layer._parameters
    return computed and tensor.shape == layer.weight.shape


def _make(model: nn.Module, change: Change) -> None:
    """Change a model; it is as it was if that is interrupted."""
    named, made = _named(model), dict[int, Tensor]()
    undo: list[tuple[nn.Module, str, Any]] = []
    try:
        for name, tensor in change.tensors.items():
            old = named[name]
            if id(old) not in made:
                made[id(old)] = _like(old, tensor)
            owner, _, leaf = name.rpartition(".")
            undo.append((model.get_submodule(owner), leaf, old))
            setattr(model.get_submodule(owner), leaf, made[id(old)])
        for (path, name), value in change.attributes.items():
            module = model.get_submodule(path)
            undo.append((module, name, getattr(module, name)))
            setattr(module, name, value)
    except BaseException:
        for module, name, value in reversed(undo):
            setattr(module, name, value)
        raise


def _like(old: Tensor, new: Tensor) -> Tensor:
    """A copy of `new` with the type, device and role of `old`."""
    tensor = new.detach().to(device=old.device, dtype=old.dtype, copy=True)
    if isinstance(old, nn.Parameter):
        return nn.Parameter(tensor, requires_grad=old.requires_grad)
    return tensor


def _check(model: nn.Module, trial: nn.Module, dense: Program, smaller: Program) -> None:
    """ModelError unless the changed copy computes what the smaller program does, in float64."""
    wanted = double(smaller)
    perturb(wanted, torch.Generator().manual_seed(0))
    trial = trial.double()
    _make(trial, Change(_matching(trial, wanted), {}))
    inputs = random_inputs(smaller, torch.Generator().manual_seed(1))
    reference = outputs(wanted, inputs)
    try:
        found, tolerance = outputs(trial, inputs), TOLERANCE
    except Exception:  # the model's Python may make float32 tensors of its own
        try:
            found = outputs(
                trial.float(), [x.float() if x.is_floating_point() else x for x in inputs]
            )
            tolerance = SINGLE_TOLERANCE
        except Exception as error:
            raise _refusal(first_line(error), _line(error)) from error
    worst = difference(reference, found)
    if tolerance < worst <= SINGLE_TOLERANCE and not _runs_in_double(model, dense):
        tolerance = SINGLE_TOLERANCE
    if not worst <= tolerance:  # NaN fails
        reason = f"its output differs by {worst:.1e} from the pruned graph's"
        raise _refusal(reason, _baked(dense, smaller))


def _runs_in_double(model: nn.Module, dense: Program) -> bool:
    """Whether the model as it was computes in float64 what its graph does; it may cast to less."""
    inputs = random_inputs(dense, torch.Generator().manual_seed(1))
    found = outputs(copied(model).double(), inputs)
    return difference(outputs(double(dense), inputs), found) <= TOLERANCE


def _matching(model: nn.Module, source: nn.Module) -> dict[str, Tensor]:
    """The source's tensors under the names that the model has for them."""
    held, named = _named(source), _named(model)
    known = {id(tensor): held[name] for name, tensor in named.items() if name in held}
    return {name: known[id(tensor)] for name, tensor in named.items() if id(tensor) in known}


def outputs(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """The floating-point outputs in evaluation mode, without fused shortcuts."""
    module.eval()
    with _no_fast_path(), torch.no_grad():
        found = tree_leaves(module(*(x.clone() for x in inputs)))
    return [y.double() for y in found if isinstance(y, Tensor) and y.is_floating_point()]


@contextmanager
def _no_fast_path() -> Iterator[None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def difference(wanted: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference relative to each output's largest value; infinite for shapes."""
    if [y.shape for y in wanted] != [y.shape for y in found]:
        return float("inf")
    worst = 0.0
    for a, b in zip(wanted, found, strict=True):
        if a.numel():
            scale = max(float(a.abs().max()), 1e-30)
            worst = max(worst, float((a - b).abs().nan_to_num(nan=float("inf")).max()) / scale)
    return worst


def _refusal(reason: str, where: str) -> ModelError:
    return ModelError(
        f"the model cannot be made smaller in place, its Python keeps an old size: {reason}",
        where=where,
        hint=_HINT,
    )


def _line(error: Exception) -> str:
    """`file:line  code` of the user's innermost line that failed."""
    place = user_frame(error)
    file, _, number = place.rpartition(":")
    return f"{place}  {linecache.getline(file, int(number)).strip()}" if file else ""


def _baked(dense: Program, smaller: Program) -> str:
    """The first line whose call has other integers in the smaller graph: one did not follow."""
    before = {node.name: node for node in dense.module.graph.nodes}
    for node in smaller.module.graph.nodes:
        old = before.get(node.name)
        if old is None or node.op != "call_function" or "conv" in str(node.target):
            continue
        if old.target != node.target or changed_sizes(old, node):
            return source_line(node)
    return ""
