"""How far two graphs are apart on the same inputs: in values, and in gradients.

In: two float64 modules, one of which has slices of the other's parameters. Out: relative errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from hwprune.program import Program

Kept = Mapping[str, Mapping[int, np.ndarray]]
TOLERANCE = 1e-9
_DRAWS = 4  # of roundings
_APART = 8  # roundings by which two networks may differ, for they round in different places
SAMPLES = 2  # of a batch, which do not meet


class NoGradients(Exception):  # noqa: N818 - not an error: only values can be compared then
    """The original network cannot be differentiated; says why."""


def cut(tensor: Tensor, kept: Mapping[int, np.ndarray]) -> Tensor:
    """The kept indices of each dimension."""
    for dim, indices in kept.items():
        tensor = tensor.index_select(dim, torch.from_numpy(indices).to(tensor.device))
    return tensor


def random_inputs(program: Program, generator: torch.Generator) -> list[Tensor]:
    """Random inputs of the example inputs' shapes, a few of a batch that may have any size.

    Integers are taken as they are.
    """
    return [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        if x.is_floating_point()
        else x.clone()
        for x in few_inputs(program)
    ]


def few_inputs(program: Program) -> tuple[Tensor, ...]:
    """The example inputs, at most `SAMPLES` of a batch where the program takes any."""
    return tuple(x[:SAMPLES] if program.dynamic_batch else x for x in program.inputs)


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
    expected, given = _gradients(large, wanted_inputs), _gradients(small, found_inputs)
    names = [name for name, gradient in expected.items() if gradient is not None and name in given]
    pairs = [(_cut(expected[name], kept.get(name, {})), given[name]) for name in names]
    worst = gradient_error(pairs)
    if worst > TOLERANCE:
        roundings = _roundings(large, inputs, weights, expected)
        worst = gradient_error(pairs, [roundings[name] for name in names])
    return _values_error(wanted, found), worst


def _gradients(module: fx.GraphModule, leaves: list[Tensor]) -> dict[str, Tensor | None]:
    """The gradients of inputs, by number, and of parameters, by every name they have."""
    listed = module.named_parameters(remove_duplicate=False)
    of_inputs = {f"inputs[{i}]": x.grad for i, x in enumerate(leaves)}
    return of_inputs | {name: parameter.grad for name, parameter in listed}


def _cut(tensor: Tensor | None, kept: Mapping[int, np.ndarray]) -> Tensor | None:
    return None if tensor is None else cut(tensor, kept)


def _roundings(
    module: fx.GraphModule,
    inputs: list[Tensor],
    weights: list[Tensor],
    gradients: Mapping[str, Tensor | None],
) -> dict[str, float]:
    """How far each gradient moves where inputs and parameters move by a rounding of float64.

    A gradient that is a difference of large numbers cannot be known better than that: that of the
    scale before a norm is exactly zero, and comes out divided by a variance. Changes `module`.
    """
    generator = torch.Generator().manual_seed(0)
    values = {name: p.detach().clone() for name, p in module.named_parameters()}
    moved = dict.fromkeys(gradients, 0.0)
    for _ in range(_DRAWS):
        for name, parameter in module.named_parameters():
            parameter.grad = None
            parameter.detach().copy_(_moved(values[name], generator))
        outputs, leaves = _run(module, [_moved(x, generator) for x in inputs])
        _differentiate(outputs, weights)
        for name, gradient in _gradients(module, leaves).items():
            before = gradients[name]
            if gradient is not None and before is not None and gradient.numel():
                moved[name] = max(moved[name], float((gradient - before).abs().max()))
    return moved


def _moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each number as it is, or the next one above or below."""
    if not x.is_floating_point():
        return x
    step = torch.randint(-1, 2, x.shape, generator=generator, dtype=torch.float64).to(x.device)
    return x * (1 + torch.finfo(torch.float64).eps * step)


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


def gradient_error(
    pairs: Sequence[tuple[Tensor | None, Tensor | None]], roundings: Sequence[float] = ()
) -> float:
    """Each gradient relative to its largest entry, at least 1e-5 of the largest of all.

    The gradient of what has no influence (the one channel of a layer norm) is exactly zero and
    comes out as a few roundings of the largest: 1e-9 of 1e-5 are 45 roundings of float64.
    Nor is what lies within a few `roundings`, by which each gradient moves by itself, above 1e-9.
    """
    noise = [_APART * r for r in roundings] or [0.0] * len(pairs)
    known = [
        (a, b, n) for (a, b), n in zip(pairs, noise, strict=True) if a is not None and a.numel()
    ]
    largest = max((float(a.abs().max()) for a, _, _ in known), default=0.0)
    errors = [0.0]
    for a, b, within in known:
        if b is None or a.shape != b.shape:
            return float("inf")
        scale = max(float(a.abs().max()), 1e-5 * largest, within / TOLERANCE, 1e-30)
        errors.append(float((a - b).abs().max()) / scale)
    return float(np.max(errors))
