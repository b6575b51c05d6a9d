"""The certificate: the smaller program is the original with the removed channels silenced.

Input: the original, its coupling, the plan and the rewritten program. Output: a `Certificate`.
Both run in float64 on the same perturbed parameters, so that weights that happen to be zero or
one (a fresh batch norm) hide no mistake.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from hwprune.compare import TOLERANCE, Kept, NoGradients, compare, cut, random_inputs
from hwprune.coupling import Coupling
from hwprune.errors import CertificateError
from hwprune.plan import Plan
from hwprune.program import Program, get_tensor, tensor_value
from hwprune.reference import plain_norms, renormalise, silence_branches
from hwprune.rewrite import kept_indices
from hwprune.rules.engine import operator_names

_ATEN = torch.ops.aten
_NOT_RANDOM: dict[str, Any] = {
    "rand": _ATEN.zeros.default,
    "randn": _ATEN.zeros.default,
    "rand_like": _ATEN.zeros_like.default,
    "randn_like": _ATEN.zeros_like.default,
}


@dataclass(frozen=True)
class Certificate:
    """How far the smaller program is from the silenced original.

    `max_rel_error` is over all outputs, relative to each output's largest magnitude;
    `gradient_rel_error` likewise over the kept parameters' and inputs' gradients (None if they
    were not compared). `reference` says what the smaller program was compared with.
    """

    max_rel_error: float
    reference: str
    passed: bool
    gradient_rel_error: float | None = None
    failure: str = ""

    def check(self) -> None:
        """CertificateError unless the certificate passed."""
        if not self.passed:
            raise CertificateError(
                "the smaller model is not the original with the removed channels silenced: "
                f"{self.failure}",
                hint="this is a defect of hwprune; please report the model",
            )


def verify(
    program: Program,
    coupling: Coupling,
    plan: Plan,
    rewritten: Program,
    *,
    gradients: bool = True,
    seed: int = 0,
) -> Certificate:
    """Compare a freshly rewritten program with the silenced original, in evaluation mode.

    To be called before the smaller model is trained: its parameters must be slices.
    """
    kept = kept_indices(coupling, plan, program)
    reference = "silenced original, float64, perturbed parameters"
    for fault in (_lint(coupling, plan, rewritten), _not_sliced(program, rewritten, kept)):
        if fault:
            return Certificate(float("inf"), reference, False, None, fault)
    arguments = (program, coupling, plan, rewritten, kept, seed)
    try:
        return _certify(*arguments, reference, gradients)
    except NoGradients:
        reference += ", values only: the original cannot be differentiated"
        return _certify(*arguments, reference, False)


def _certify(
    program: Program,
    coupling: Coupling,
    plan: Plan,
    rewritten: Program,
    kept: Kept,
    seed: int,
    reference: str,
    gradients: bool,
) -> Certificate:
    """The certificate of graphs without a fault. Raises NoGradients."""
    large, small = double(program), double(rewritten)
    generator = torch.Generator().manual_seed(seed)
    perturb(large, generator)
    _copy_slices(large, small, kept)
    _silence(large, kept)
    removed = coupling.removed(plan.kept)
    if removed:
        silence_branches(large, removed)
        reference += f", {len(removed)} branch{'es' * (len(removed) > 1)} multiplied by zero"
    if renormalise(large, coupling, coupling.unit_mask(plan.kept)):
        reference += ", normalised over the kept channels"
    for module in (large, small):
        plain_norms(module)
    inputs = random_inputs(program, generator)
    error, gradient_error = compare(large, small, kept, inputs, gradients, generator)
    worst = max(error, gradient_error or 0.0)
    passed = worst <= TOLERANCE  # NaN fails
    failure = "" if passed else f"values differ by {error:.1e}, gradients by {gradient_error}"
    return Certificate(error, reference, passed, gradient_error, failure)


def _lint(coupling: Coupling, plan: Plan, rewritten: Program) -> str:
    """What is wrong with the shapes of the smaller graph, if anything."""
    widths = plan.widths()
    for node in rewritten.module.graph.nodes:
        value = tensor_value(node)
        if value is None or node.name not in coupling.shapes or node.op == "output":
            continue
        for dim, size in enumerate(value.shape):
            wanted = coupling.extent(node.name, dim)
            if isinstance(size, int) and size != wanted.at(widths) and wanted.terms:
                return f"{node.name} has length {size} along {dim}, not {wanted.at(widths)}"
    return ""


def _not_sliced(program: Program, rewritten: Program, kept: Kept) -> str:
    """The first parameter of the smaller program that is no slice of the original's."""
    for node in rewritten.module.graph.nodes:
        name = str(node.target)
        if node.op != "get_attr" or not _has(program.module, name):
            continue
        wanted, found = get_tensor(program.module, name), get_tensor(rewritten.module, name)
        if isinstance(wanted, Tensor) and wanted.is_floating_point():
            part = cut(wanted.detach(), kept.get(name, {}))
            same = part.shape == found.shape and bool(((part == found) | part.isnan()).all())
            if not same:
                return f"{name} is not a slice of the original's"
    return ""


def _has(module: nn.Module, target: str) -> bool:
    try:
        get_tensor(module, target)
    except AttributeError:
        return False
    return True


def double(program: Program) -> fx.GraphModule:
    """A float64 copy in evaluation mode, with nothing random in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own pytree records
        module = copy.deepcopy(program.module).double().eval()
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if "dropout" in operator_names(node)[1] and len(node.args) > 2:
            node.update_arg(2, False)
        node.target = _NOT_RANDOM.get(operator_names(node)[1], node.target)
        if node.kwargs.get("dtype") is torch.float32:
            node.update_kwarg("dtype", torch.float64)
        if any(a is torch.float32 for a in node.args):
            node.args = tuple(torch.float64 if a is torch.float32 else a for a in node.args)
    module.recompile()
    return module


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _variances(module: fx.GraphModule) -> set[str]:
    """Names of running variances: they must stay positive."""
    names: set[str] = set()
    for node in module.graph.nodes:
        if node.op == "call_function" and operator_names(node)[1].endswith("_norm"):
            names |= {
                str(a.target)
                for a in node.args[4:5]
                if isinstance(a, fx.Node) and a.op == "get_attr"
            }
    return names


def perturb(module: fx.GraphModule, generator: torch.Generator) -> None:
    """Scale every slice of every parameter and buffer along each of its first two dimensions.

    Factors lie within 0.8 to 1.2; what is constant (zeros, ones) is moved as well.
    """
    positive = _variances(module)
    for name, tensor in _tensors(module).items():
        if not tensor.is_floating_point() or tensor.ndim == 0:
            continue
        data = tensor.detach()
        flat = data.reshape(-1)
        constant = bool((flat[:64] == flat[:1]).all()) and bool((flat == flat[:1]).all())
        for dim in range(min(2, data.ndim)):
            data *= 0.8 + 0.4 * _random(data, dim, torch.rand, generator)
        if constant and name not in positive and bool(torch.isfinite(data).all()):
            data += 0.1 * _random(data, 0, torch.randn, generator)


def _random(
    like: Tensor, dim: int, draw: Callable[..., Tensor], generator: torch.Generator
) -> Tensor:
    """One random number for each position along `dim`, shaped to broadcast."""
    values = draw(like.shape[dim], generator=generator, dtype=like.dtype)
    return values.to(like.device).reshape([-1 if d == dim else 1 for d in range(like.ndim)])


def _copy_slices(large: nn.Module, small: nn.Module, kept: Kept) -> None:
    """Give the smaller module the perturbed parameters' slices, by any of their names."""
    source = _tensors(large) | dict(large.named_parameters(remove_duplicate=False))
    for name, tensor in _tensors(small).items():
        if name in source and tensor.is_floating_point():
            tensor.detach().copy_(cut(source[name].detach(), kept.get(name, {})))


def _silence(module: nn.Module, kept: Kept) -> None:
    """Zero every removed slice of every parameter and floating-point buffer."""
    for name, tensor in _tensors(module).items():
        for dim, indices in kept.get(name, {}).items():
            if tensor.is_floating_point():
                gone = np.setdiff1d(np.arange(tensor.shape[dim]), indices)
                tensor.detach().index_fill_(dim, torch.from_numpy(gone).to(tensor.device), 0.0)
