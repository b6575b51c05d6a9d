"""The certificate: the smaller program is the original with the removed channels silenced.

Input: the original, its coupling, the plan and the rewritten program. Output: a `Certificate`.
Both run in float64 on the same perturbed parameters, so that weights that happen to be zero or
one (a fresh batch norm) hide no mistake.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from hwprune.coupling import Coupling
from hwprune.errors import CertificateError
from hwprune.plan import Plan
from hwprune.program import Program, get_tensor, tensor_value
from hwprune.reference import plain_batch_norms, renormalise, silence_branches
from hwprune.rewrite import kept_indices
from hwprune.rules.engine import operator_names

TOLERANCE = 1e-9
_Kept = Mapping[str, Mapping[int, np.ndarray]]


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
        plain_batch_norms(module)
    inputs = random_inputs(program, generator)
    error, gradient_error = _compare(large, small, kept, inputs, gradients, generator)
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


def _not_sliced(program: Program, rewritten: Program, kept: _Kept) -> str:
    """The first parameter of the smaller program that is no slice of the original's."""
    for node in rewritten.module.graph.nodes:
        name = str(node.target)
        if node.op != "get_attr" or not _has(program.module, name):
            continue
        wanted, found = get_tensor(program.module, name), get_tensor(rewritten.module, name)
        if isinstance(wanted, Tensor) and wanted.is_floating_point():
            cut = _cut(wanted.detach(), kept.get(name, {}))
            same = cut.shape == found.shape and bool(((cut == found) | cut.isnan()).all())
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


def _copy_slices(large: nn.Module, small: nn.Module, kept: _Kept) -> None:
    """Give the smaller module the perturbed parameters' slices, by any of their names."""
    source = _tensors(large) | dict(large.named_parameters(remove_duplicate=False))
    for name, tensor in _tensors(small).items():
        if name in source and tensor.is_floating_point():
            tensor.detach().copy_(_cut(source[name].detach(), kept.get(name, {})))


def _cut(tensor: Tensor, kept: Mapping[int, np.ndarray]) -> Tensor:
    for dim, indices in kept.items():
        tensor = tensor.index_select(dim, torch.from_numpy(indices).to(tensor.device))
    return tensor


def _silence(module: nn.Module, kept: _Kept) -> None:
    """Zero every removed slice of every parameter and floating-point buffer."""
    for name, tensor in _tensors(module).items():
        for dim, indices in kept.get(name, {}).items():
            if tensor.is_floating_point():
                gone = np.setdiff1d(np.arange(tensor.shape[dim]), indices)
                tensor.detach().index_fill_(dim, torch.from_numpy(gone).to(tensor.device), 0.0)


def random_inputs(program: Program, generator: torch.Generator) -> list[Tensor]:
    """Random inputs of the example inputs' shapes; integers are taken as they are."""
    return [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        if x.is_floating_point()
        else x.clone()
        for x in program.inputs
    ]


def _compare(
    large: fx.GraphModule,
    small: fx.GraphModule,
    kept: _Kept,
    inputs: list[Tensor],
    gradients: bool,
    generator: torch.Generator,
) -> tuple[float, float | None]:
    """(relative error of the outputs, of the gradients)."""
    if not gradients:
        with torch.no_grad():
            return _values_error(_run(large, inputs)[0], _run(small, inputs)[0]), None
    wanted, wanted_inputs = _run(large, inputs)
    weights = [
        torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device) for y in wanted
    ]
    wanted = _differentiate(wanted, weights)  # one graph at a time: they take most of the memory
    found, found_inputs = _run(small, inputs)
    found = _differentiate(found, weights)
    error = _values_error(wanted, found)
    expected: list[tuple[Tensor | None, Tensor | None]] = [
        (x.grad, y.grad) for x, y in zip(wanted_inputs, found_inputs, strict=True)
    ]
    small_parameters = dict(small.named_parameters(remove_duplicate=False))
    for name, parameter in large.named_parameters():
        if name in small_parameters and parameter.grad is not None:
            grad = _cut(parameter.grad, kept.get(name, {}))
            expected.append((grad, small_parameters[name].grad))
    return error, _gradient_error(expected)


def _differentiate(outputs: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Add the gradients of a weighted sum of the outputs; what is given back holds no graph."""
    pairs = [(y * w).sum() for y, w in zip(outputs, weights, strict=True) if y.requires_grad]
    if pairs:
        torch.stack(pairs).sum().backward()
    return [y.detach() for y in outputs]


def _run(module: fx.GraphModule, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """(floating-point outputs, the inputs they came from)."""
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        given = [x * 1 if x.is_floating_point() else x for x in leaves]  # may be changed in place
        outputs = tree_leaves(module(*given))
    return [y.double() for y in outputs if isinstance(y, Tensor)], leaves


def _values_error(wanted: list[Tensor], found: list[Tensor]) -> float:
    errors = [0.0]
    for a, b in zip(wanted, found, strict=True):
        scale = max(float(a.detach().abs().max()), 1e-30) if a.numel() else 1.0
        errors.append(float((a - b).detach().abs().max()) / scale if a.numel() else 0.0)
    return float(np.max(errors))


def _gradient_error(pairs: list[tuple[Tensor | None, Tensor | None]]) -> float:
    """Each gradient relative to its largest entry, at least 1e-5 of the largest of all.

    The gradient of what has no influence (the one channel of a layer norm) is exactly zero and
    comes out as a few roundings of the largest: 1e-9 of 1e-5 are 45 roundings of float64.
    """
    known = [(a, b) for a, b in pairs if a is not None and a.numel()]
    largest = max((float(a.abs().max()) for a, _ in known), default=0.0)
    errors = [0.0]
    for a, b in known:
        if b is None or a.shape != b.shape:
            return float("inf")
        scale = max(float(a.abs().max()), 1e-5 * largest, 1e-30)
        errors.append(float((a - b).abs().max()) / scale)
    return float(np.max(errors))
