"""Batches as users give them, read once: pairs of inputs that fit the program, and labels.

In: any iterable, a DataLoader for instance. Out: a list of `Batch`es.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from hwprune.errors import HwpruneError
from hwprune.program import Program
from hwprune.score.evidence import Batch


def read_batches(batches: Iterable[Any], program: Program) -> list[Batch]:
    """All batches, their inputs as tuples.

    Raises HwpruneError where there are none, reading fails (a worker that died), or one is no pair
    or does not fit the program.
    """
    found: list[Batch] = []
    rest = iter(batches)
    while True:
        where = f"batches, batch {len(found)}"
        try:
            batch = next(rest)
        except StopIteration:
            break
        except HwpruneError:
            raise
        except Exception as failure:  # of the user's data set, or a worker that died
            lines = str(failure).strip().splitlines() or [""]
            raise HwpruneError(
                f"the loader failed: {type(failure).__name__}: {lines[-1]}", where=where
            ) from failure
        found.append(_checked(batch, program, where))
    if not found:
        raise HwpruneError("there are no batches", where="batches", hint="check the loader")
    return found


def _checked(batch: Any, program: Program, where: str) -> Batch:
    if not isinstance(batch, Sequence) or len(batch) != 2:
        raise HwpruneError(
            "not a pair of inputs and labels", where=where, hint="(inputs, None) has no labels"
        )
    inputs = as_tuple(batch[0])
    if not all(isinstance(x, Tensor) for x in inputs):
        raise HwpruneError("the inputs are no tensors", where=where)
    shapes = [(tuple(x.shape[1:]), x.dtype) for x in inputs]
    wanted = [(tuple(x.shape[1:]), x.dtype) for x in program.inputs]
    if shapes != wanted:
        raise HwpruneError(
            f"the inputs are {_described(shapes)}, the model takes {_described(wanted)}",
            where=where,
            hint="a batch is (inputs, labels)",
        )
    return inputs, batch[1]


def _described(shapes: Sequence[tuple[tuple[int, ...], Any]]) -> str:
    texts = [
        f"{str(dtype).removeprefix('torch.')} ({', '.join(map(str, ('N', *shape)))})"
        for shape, dtype in shapes
    ]
    return " and ".join(texts) or "nothing"


def as_tuple(inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inputs of a batch, where one may be given by itself."""
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
