"""Models by reference: "package.module:callable" or a `.pt2` path -> what `capture` takes."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwprune.errors import HwpruneError, ModelError

_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
           "bool")  # fmt: skip


def load_model(reference: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """The module that a callable returns, or the path of a `.pt2` file.

    Raises ModelError naming what cannot be found or called.
    """
    if reference.endswith(".pt2") or Path(reference).is_file():
        if not Path(reference).is_file():
            raise ModelError("no such file", where=reference)
        return Path(reference)
    found = _find(reference, "package.module:callable or a .pt2 file")
    return _call(found, reference, arguments or {})


def load_function(reference: str, option: str) -> Any:
    """The function that "package.module:function" names. Raises ModelError."""
    found = _find(reference, f"{option} takes package.module:function")
    if not callable(found):
        raise ModelError("is not callable", where=reference)
    return found


def _find(reference: str, hint: str) -> Any:
    """What "package.module:name" stands for. Raises ModelError."""
    module_name, colon, attribute = reference.partition(":")
    if not colon or not module_name or not attribute:
        raise ModelError("not a model" if "pt2" in hint else "not a function",
                         where=reference, hint=hint)  # fmt: skip
    found: Any = _import(module_name, reference)
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [n for n, v in vars(found).items() if callable(v) and n[0] != "_"][:8]
            raise ModelError(
                f"{module_name} has no {attribute!r}", where=reference, hint=", ".join(known)
            )
        found = getattr(found, part)
    return found


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """["width=0.5", "name=x"] -> {"width": 0.5, "name": "x"}. Raises ModelError."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ModelError(f"{pair!r} is not key=value", where="--arg")
        found[key] = _literal(value)
    return found


def example_inputs(shapes: Sequence[str], model: Any) -> Any:
    """Random inputs of the given shapes, "1,3,224,224" or with another type than float32,
    "1,128:int64" (whole numbers are 0 or 1); None where a `.pt2` brings its own.

    Without shapes a module gets one input of its `example_input_shape`, if it has one, else an
    image of (1, 3, 224, 224). Raises ModelError.
    """
    import torch

    if not shapes:
        if isinstance(model, Path):
            return None
        shapes = [",".join(map(str, getattr(model, "example_input_shape", (1, 3, 224, 224))))]
    generator = torch.Generator().manual_seed(0)
    sizes = [(_size(shape), _dtype(shape)) for shape in shapes]
    return tuple(
        torch.randn(size, generator=generator).to(dtype)
        if dtype.is_floating_point
        else torch.randint(0, 2, size, generator=generator).to(dtype)
        for size, dtype in sizes
    )


def _size(shape: str) -> tuple[int, ...]:
    try:
        size = tuple(int(s) for s in shape.partition(":")[0].split(","))
    except ValueError:
        size = ()
    if not size or min(size) < 1:
        hint = "like 1,3,224,224 or 1,128:int64"
        raise ModelError(f"{shape!r} is not a shape", where="--input", hint=hint)
    return size


def _dtype(shape: str) -> Any:
    import torch

    _, colon, name = shape.partition(":")
    if not colon:
        return torch.float32
    if name not in _DTYPES:
        hint = f"one of {', '.join(_DTYPES)}"
        raise ModelError(f"{name!r} is not the type of an input", where="--input", hint=hint)
    return getattr(torch, name)


def in_batch(inputs: Sequence[Any], batch: int) -> Any:
    """The inputs with that first size: repeated, or the first of them. Raises ModelError."""
    if not all(x.ndim for x in inputs):
        raise ModelError("an input without a batch", where="--batch", hint="leave it out")
    times = [-(-batch // x.shape[0]) for x in inputs]
    return tuple(
        x.repeat(n, *[1] * (x.ndim - 1))[:batch] for x, n in zip(inputs, times, strict=True)
    )


def _import(name: str, reference: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"no module {error.name!r}", where=reference, hint="run from the folder that has it"
        ) from error
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"importing {name} failed: {error!r}", where=_last_line(error, reference)
        ) from error


def _call(found: Any, reference: str, arguments: Mapping[str, Any]) -> Any:
    from torch import nn

    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ModelError("is not callable", where=reference)
    try:
        inspect.signature(found).bind(**arguments)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{error}", where=reference, hint="pass --arg key=value") from error
    try:
        model = found(**arguments)
    except HwpruneError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{reference} failed: {error!r}", where=_last_line(error, reference)
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"returned a {type(model).__name__}, not an nn.Module", where=reference)
    return model


def _last_line(error: BaseException, reference: str) -> str:
    """`file:line` where user code failed, else the reference."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [f for f in frames if f.filename != __file__ and not f.filename.startswith("<")]
    return f"{users[-1].filename}:{users[-1].lineno}" if users else reference


def _literal(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)
