"""Elementwise kernels and those that only move data: a thread a vector, or an element.

Elementwise: all steps on the vector. Moves: every output element says which input element it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hwprune.lower.cuda import emit
from hwprune.lower.cuda.context import Context
from hwprune.lower.cuda.each import each_vector, natural_vector
from hwprune.lower.cuda.emit import Expr, Function, const, tirx
from hwprune.lower.cuda.epilogue import Epilogue, channel_params, flat_index, pack_channels
from hwprune.lower.formulas import BINARY, supported
from hwprune.lower.spec import NHWC, Kernel, TensorSpec, Workload

MOVES = ("layout", "slice", "roll", "shuffle", "concat")


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of an elementwise or moving workload; None if it is none."""
    if not supported(workload.epilogue) or workload.output.view not in (None, _whole(workload)):
        return None
    if workload.op == "elementwise":
        return _kernel(workload, lambda f: _elementwise(workload, f), "a vector a thread")
    if workload.op in MOVES:
        return _kernel(workload, lambda f: _move(workload, f), "an element a thread")
    return None


def _whole(workload: Workload) -> object:
    view = workload.output.view
    return view if view is not None and view.is_whole else None


def _kernel(workload: Workload, write: Callable[[Function], None], reason: str) -> Kernel:
    func = emit.build_function(workload, channel_params(workload, 0), write)
    return Kernel(
        workload, func, f"cuda.{workload.op}", reason, lambda ps: tuple(map(pack_channels, ps))
    )


def _channels(spec: TensorSpec) -> int:
    return 1 if len(spec.shape) == 4 and spec.layout != "nhwc_last" else len(spec.shape) - 1


def _elementwise(workload: Workload, function: Function) -> None:
    source, output = workload.inputs[0], workload.output
    same = (source.layout, source.shape) == (output.layout, output.shape)
    count = natural_vector(output) if same else 1
    epilogue = Epilogue(workload, function.inputs[1:], function.params, _channels(output))
    with each_vector(function, output, count) as at:
        index = flat_index(source, at)
        x = function.inputs[0]
        values = x.load_vector(index, count) if count > 1 else (lambda e: x[index])
        epilogue.store(function.output, at, count, values)


def _move(workload: Workload, function: Function) -> None:
    output = workload.output
    extras = sum(step.op in BINARY for step in workload.epilogue)
    parts = len(workload.inputs) - extras
    epilogue = Epilogue(
        workload, function.inputs[parts:], function.params, _channels(output), parts
    )
    with each_vector(function, output, 1) as at:
        value = _find(workload, function, list(at), parts)
        if output.layout == NHWC and output.physical(1)[-1] != output.shape[1]:
            value = tirx.if_then_else(at[1] < output.shape[1], value, const(0.0))
        epilogue.store(function.output, at, 1, lambda e: value)


def _find(workload: Workload, function: Function, at: list[Expr], parts: int) -> Expr:
    """The element of the inputs that the output has at `at`."""
    if workload.op == "concat":
        return _part(workload, function, at, range(parts))
    spec = workload.inputs[0]
    if workload.op == "slice":
        axis = workload.attr("axis")
        at[axis] = workload.attr("start") + at[axis] * workload.attr("step")
    elif workload.op == "roll":
        for axis, shift in zip(workload.attr("axes"), workload.attr("shifts"), strict=True):
            size = spec.shape[axis]
            at[axis] = (at[axis] + (-shift % size)) % size
    elif workload.op == "shuffle":
        groups = workload.attr("groups")
        at[1] = at[1] % groups * (spec.shape[1] // groups) + at[1] // groups
    return _read(function, 0, spec, at)


def _part(workload: Workload, function: Function, at: list[Expr], left: Sequence[int]) -> Expr:
    """The element of the parts that are `left`, `at` counting from the first of them."""
    axis, first = workload.attr("axis"), left[0]
    here = _read(function, first, workload.inputs[first], at)
    if len(left) == 1:
        return here
    size = workload.inputs[first].shape[axis]
    beyond = [i - size if d == axis else i for d, i in enumerate(at)]
    rest = _part(workload, function, beyond, left[1:])
    return tirx.if_then_else(at[axis] < size, here, rest)


def _read(function: Function, i: int, spec: TensorSpec, at: Sequence[Expr]) -> Expr:
    """An element; one past the shape, as padding has it, is read within it."""
    at = [tirx.max(0, tirx.min(a, size - 1)) for a, size in zip(at, spec.shape, strict=True)]
    return function.inputs[i][flat_index(spec, at)]
