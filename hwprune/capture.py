"""Capture: `nn.Module`, `ExportedProgram` or `.pt2` + example inputs -> `Program`.

torch.export is the IR. The captured graph is one that runs, trains, copies and saves
without the user's classes, and every later stage reads nothing but a `Program`.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from hwprune.errors import HwpruneError, ModelError
from hwprune.inline import inline_regions
from hwprune.model_check import (
    check_finite,
    check_input_sizes,
    check_model,
    check_module_inputs,
    check_values,
    copied,
    mixes_types,
)
from hwprune.program import (
    FIXED_TRAINING,
    Program,
    ProgramModule,
    build_program,
    carry_buffers,
    carry_ties,
    fingerprint,
    short_path,
    source_line,
    specialize,
    symbolic_dims,
    tensor_value,
    training_position,
)

__all__ = ["Program", "ProgramModule", "capture", "fingerprint", "source_line", "specialize"]


def capture(
    model: nn.Module | ExportedProgram | str | Path,
    inputs: Sequence[Tensor] | None = None,
    *,
    name: str = "",
) -> Program:
    """Capture a network in evaluation mode, with a dynamic batch where the model allows it.

    Args:
        model: a module, an exported program, or the path of a `.pt2` file.
        inputs: example inputs, batch first; None takes those of an exported program.
        name: what reports call the network; defaults to the class or file name.

    Raises ModelError if the model cannot be exported or read, its weights are not finite, or
    the inputs do not fit. The caller's module is left as it was.
    """
    if isinstance(model, str | Path):
        name = name or Path(model).stem
        model = _load_exported(Path(model))
    if isinstance(model, ExportedProgram):
        program = _from_exported(model, inputs, name or "model")
    else:
        if inputs is None:
            raise ModelError("a module needs example inputs", hint="pass a tuple of tensors")
        check_model(model)
        check_module_inputs(model, tuple(inputs))
        check_finite(dict(model.named_parameters()), dict(model.named_buffers()))
        program = _from_module(model, tuple(inputs), name or type(model).__name__)
    check_values(program.module.graph)
    check_finite(dict(program.module.named_parameters()), dict(program.module.named_buffers()))
    return program


def _load_exported(path: Path) -> ExportedProgram:
    """Read a `.pt2` file; ModelError where it is absent or corrupt."""
    if not path.is_file():
        raise ModelError("no such file", where=str(path))
    try:
        return torch.export.load(path)
    except Exception as error:
        raise ModelError(
            f"not a readable exported program: {first_line(error)}",
            where=str(path),
            hint="write it with torch.export.save",
        ) from error


def _check_inputs(inputs: tuple[Tensor, ...], placeholders: list[fx.Node]) -> None:
    """ModelError where the example inputs do not fit an exported program's."""
    if len(inputs) != len(placeholders):
        raise ModelError(f"the model takes {len(placeholders)} inputs, not {len(inputs)}")
    for node, given in zip(placeholders, inputs, strict=True):
        wanted = tensor_value(node)
        if wanted is None:
            continue
        fits = given.ndim == wanted.ndim and all(
            not isinstance(w, int) or g == w for g, w in zip(given.shape, wanted.shape, strict=True)
        )
        if not fits:
            shape = ",".join(str(s) if isinstance(s, int) else "*" for s in wanted.shape)
            raise ModelError(
                f"input {node.name} has shape {tuple(given.shape)}, the model takes ({shape})"
            )
        if given.dtype != wanted.dtype:
            raise ModelError(f"input {node.name} is {given.dtype}, the model takes {wanted.dtype}")


def _from_exported(
    exported: ExportedProgram, inputs: Sequence[Tensor] | None, name: str
) -> Program:
    """A Program from a program that is already exported (keeps its dynamic dimensions)."""
    if inputs is None:
        if exported.example_inputs is None:
            raise ModelError("the exported program has no example inputs", hint="pass inputs")
        inputs = exported.example_inputs[0]
    check_input_sizes(tuple(inputs))
    module = _unlift(exported)
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    _check_inputs(tuple(inputs), placeholders)
    dynamic = all(0 in symbolic_dims(n) for n in placeholders if tensor_value(n) is not None)
    nodes = [n for n in module.graph.nodes if training_position(n) is not None]
    flags = [bool(n.args[training_position(n)]) for n in nodes]
    if not all(flags):
        _mark_fixed(nodes)
    return build_program(module, tuple(inputs), name, dynamic and bool(placeholders))


def _from_module(model: nn.Module, inputs: tuple[Tensor, ...], name: str) -> Program:
    """Export a module: with a dynamic batch, or with fixed sizes where that is refused."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _quiet():
            exported, dynamic = _export(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, mode in modes.items():
            module.training = mode
    module = _unlift(exported)
    carry_buffers(model, module)
    carry_ties(model, module)
    _mark_fixed([n for n in module.graph.nodes if training_position(n) is not None])
    return build_program(module, inputs, name, dynamic)


def _export(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[ExportedProgram, bool]:
    """(exported program, whether its batch is dynamic). Raises ModelError."""
    if mixes_types(model, inputs):  # torch.export would not notice
        try:
            with torch.no_grad():
                copied(model)(*(x.clone() for x in inputs))
        except Exception as error:
            raise _export_error(model, inputs, error) from error
    batched = inputs and all(isinstance(x, Tensor) and x.ndim > 0 for x in inputs)
    if batched and len({x.shape[0] for x in inputs}) == 1:
        twice = tuple(torch.cat([x, x]) if x.shape[0] == 1 else x.clone() for x in inputs)
        dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
        try:
            return torch.export.export(model, twice, dynamic_shapes=dynamic), True
        except Exception:
            pass  # the batch is baked in, or nothing can be exported: the next attempt tells
    try:
        return torch.export.export(model, inputs), False
    except Exception as error:
        raise _export_error(model, inputs, error) from error


def _export_error(model: nn.Module, inputs: tuple[Tensor, ...], error: Exception) -> HwpruneError:
    """The clearest account of a failed export: wrong inputs, or the user's line and the op."""
    try:
        with torch.no_grad():
            copied(model)(*(x.clone() for x in inputs))
    except Exception as plain:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs if isinstance(x, Tensor))
        return ModelError(
            f"the model does not run on inputs of shape {shapes}: {first_line(plain)}",
            where=user_frame(plain),
            hint="check the number and shapes of the inputs",
        )
    place = user_frame(error)
    file, _, line = place.rpartition(":")
    code = linecache.getline(file, int(line)).strip() if file else ""
    culprits = [f"operator {name}" for name in [_operator(error)] if name]
    culprits += [f"in `{code}`"] if code else []
    return ModelError(
        "the model cannot be exported"
        + (f" ({' '.join(culprits)})" if culprits else "")
        + f": {type(error).__name__}: {first_line(error)}",
        where=place,
        hint="torch.export must be able to trace it",
    )


def _operator(error: BaseException) -> str:
    """The operator at which an export failed; empty if torch does not tell."""
    graph = str(getattr(error, "partial_fx_graph", ""))  # what was traced before a value was needed
    traced = [n for n in re.findall(r"torch\.ops\.([\w.]+)\(", graph) if "sym_" not in n]
    if traced:
        return traced[-1]
    trace, name = error.__traceback__, ""
    while trace is not None:
        called = trace.tb_frame.f_locals.get("func")
        if isinstance(called, torch._ops.OpOverload):
            name = str(called)
        trace = trace.tb_next
    return name


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from printing graphs and warnings: what matters is in the exception."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty, or the error's class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def user_frame(error: BaseException) -> str:
    """`file:line` of the innermost frame outside torch, from the message or the traceback."""
    own = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))
    listed = re.findall(r'File "([^"]+)", line (\d+)', str(error))
    trace = error.__traceback__
    walked: list[tuple[str, str]] = []
    while trace is not None:
        walked.append((trace.tb_frame.f_code.co_filename, str(trace.tb_lineno)))
        trace = trace.tb_next
    for frames in (walked, listed):
        users = [f for f in frames if not f[0].startswith((*own, "<"))]
        if users:
            return f"{short_path(users[-1][0])}:{users[-1][1]}"
    return ""


def _mark_fixed(nodes: list[fx.Node]) -> None:
    """Remember the nodes that are in training mode although the model was evaluated."""
    for node in nodes:
        position = training_position(node)
        if position is not None and bool(node.args[position]):
            node.meta[FIXED_TRAINING] = True


def _unlift(exported: ExportedProgram) -> fx.GraphModule:
    """The graph module of an exported program, without guard nodes and assertions."""
    module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    inline_regions(module)
    for node in list(module.graph.nodes):
        guard = node.op == "call_module" and str(node.target).startswith("_guards_fn")
        # These pin the dtype: the module could not be used after `.double()`.
        if guard or node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module
