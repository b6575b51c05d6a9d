"""How far two graphs are apart on the same inputs: in values, and in gradients.

In: two float64 modules, one of which has slices of the other's parameters. Out: relative errors.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from hwprune.program import Program

Kept = Mapping[str, Mapping[int, np.ndarray]]


class NoGradients(Exception):  # noqa: N818 - not an error: only values can be compared then
    """The original network cannot be differentiated; says why."""


def cut(tensor: Tensor, kept: Mapping[int, np.ndarray]) -> Tensor:
    """The kept indices of each dimension."""
    for dim, indices in kept.items():
        tensor = tensor.index_select(dim, torch.from_numpy(indices).to(tensor.device))
    return tensor


def random_inputs(program: Program, generator: torch.Generator) -> list[Tensor]:
    """Random inputs of the example inputs' shapes; integers are taken as they are."""
    return [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        if x.is_floating_point()
        else x.clone()
        for x in program.inputs
    ]


def compare(
    large: fx.GraphModule,
    small: fx.GraphModule,
    kept: Kept,
    inputs: list[Tensor],
    gradients: bool,
    generator: torch.Generator,
) -> tuple[float, float | None]:
    """(relative error of the outputs, of the gradients).

    Raises NoGradients where those of `large` cannot be had.
    """
    if not gradients:
        with torch.no_grad():
            return _values_error(_run(large, inputs)[0], _run(small, inputs)[0]), None
    wanted, wanted_inputs = _run(large, inputs)
    weights = [
        torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device) for y in wanted
    ]
    try:
        wanted = _differentiate(wanted, weights)  # one graph at a time: they take most memory
    except RuntimeError as failure:
        raise NoGradients(str(failure)) from failure
    found, found_inputs = _run(small, inputs)
    found = _differentiate(found, weights)
    error = _values_error(wanted, found)
    expected: list[tuple[Tensor | None, Tensor | None]] = [
        (x.grad, y.grad) for x, y in zip(wanted_inputs, found_inputs, strict=True)
    ]
    small_parameters = dict(small.named_parameters(remove_duplicate=False))
    for name, parameter in large.named_parameters():
        if name in small_parameters and parameter.grad is not None:
            grad = cut(parameter.grad, kept.get(name, {}))
            expected.append((grad, small_parameters[name].grad))
    return error, gradient_error(expected)


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


def gradient_error(pairs: list[tuple[Tensor | None, Tensor | None]]) -> float:
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
