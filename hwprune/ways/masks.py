"""Masks: single weights become zero, every layer keeps its shape.

In: a module, and how much to mask. Out: the same module masked, and an account of what that saves:
bytes on disk, and no latency, for dense kernels multiply zeros like any number. (The sparse kernels
of torchao and torch need a GPU; on a CPU they have masks only, and these are the same.)
"""

from __future__ import annotations

import copy
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from hwprune.bench import interleaved
from hwprune.build import build
from hwprune.errors import HwpruneError, ModelError
from hwprune.given import as_program
from hwprune.program import Program
from hwprune.request import read_target
from hwprune.target import check_runnable
from hwprune.ways.sparse_file import bitmap_bytes, plain_bytes, sparse_bytes

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NOTE = "dense kernels multiply zeros like any number: a mask alone gains no latency"


@dataclass(frozen=True)
class Masked:
    """A masked module and the account of what its mask saves, as JSON data."""

    module: nn.Module
    report: dict[str, Any]


def mask(
    model: nn.Module,
    amount: float | None = None,
    *,
    pattern: str | None = None,
    permanent: bool = True,
    inputs: Sequence[Tensor] | None = None,
    target: str = "host",
    threads: int = 1,
) -> Masked:
    """Mask the smallest weights of all linear layers and convolutions, in place.

    Args:
        amount: the share of all weights to mask, wherever they are (global magnitude).
        pattern: instead, "n:m": of every m weights along a layer's inputs the n largest stay.
            Layers whose inputs are no multiple of m stay whole and are named in the report.
        permanent: False keeps the masks of `torch.nn.utils.prune`, so that training keeps them.
        inputs: example inputs; where given, the network is compiled for `target` with and without
            the mask and both are timed in turn.

    Raises HwpruneError for a bad amount or pattern, ModelError where there is nothing to mask.
    """
    if (amount is None) == (pattern is None):
        raise HwpruneError("give an amount or a pattern", where="mask", hint="0.5, or '2:4'")
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, _LAYERS)]
    if not layers:
        raise ModelError("no linear layer and no convolution to mask")
    if any(torch_prune.is_pruned(m) for _, m in layers):
        raise ModelError("is masked already", hint="torch.nn.utils.prune.remove ends a mask")
    program = as_program(model, inputs, "") if inputs is not None else None
    program = program and replace(program, module=copy.deepcopy(program.module))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    skipped: list[str] = []
    if amount is not None:
        _unstructured([m for _, m in layers], amount)
    else:
        skipped = _structured(layers, _read(str(pattern)))
    done = [(n, m) for n, m in layers if torch_prune.is_pruned(m)]
    after = before | {
        f"{n}.weight": m.get_buffer("weight_mask") * m.get_parameter("weight_orig").detach()
        for n, m in done
    }
    if permanent:
        for _, layer in done:
            torch_prune.remove(layer, "weight")
    report = _account(before, after, [f"{n}.weight" for n, _ in layers]) | {
        "asked": {"amount": amount} if amount is not None else {"pattern": pattern},
        "skipped": skipped,
        "note": NOTE,
    }
    if program is not None:
        report["latency"] = _latency(program, after, target, threads)
    return Masked(model, report)


def _unstructured(layers: Sequence[nn.Module], amount: float) -> None:
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < 1:
        raise HwpruneError(f"{amount!r} is no share", where="amount", hint="above 0 and below 1")
    weights = [(layer, "weight") for layer in layers]
    torch_prune.global_unstructured(
        weights, pruning_method=torch_prune.L1Unstructured, amount=float(amount)
    )


def _read(pattern: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", pattern)
    stay, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < stay < of:
        raise HwpruneError(
            f"{pattern!r} is no pattern", where="pattern", hint="'2:4' keeps 2 weights of every 4"
        )
    return stay, of


def _structured(layers: Sequence[tuple[str, nn.Module]], pattern: tuple[int, int]) -> list[str]:
    """Mask by n:m along the inputs; the layers that have no multiple of m."""
    skipped = []
    for name, layer in layers:
        weight = layer.get_parameter("weight").detach()
        if weight.shape[1] % pattern[1]:
            skipped.append(name)
        else:
            torch_prune.custom_from_mask(layer, "weight", strongest(weight, *pattern))
    if len(skipped) == len(layers):
        raise ModelError(
            f"no layer has a multiple of {pattern[1]} inputs", where="pattern", hint="give amount"
        )
    return skipped


def strongest(weight: Tensor, stay: int, of: int) -> Tensor:
    """One where a weight is among the `stay` largest of its `of` along dimension 1, else zero."""
    rows = weight.abs().movedim(1, -1)
    blocks = rows.reshape(-1, of)
    chosen = torch.zeros_like(blocks).scatter_(1, blocks.topk(stay, dim=1).indices, 1.0)
    return chosen.reshape(rows.shape).movedim(-1, 1).contiguous()


def _account(before: dict[str, Tensor], after: dict[str, Tensor], masked: list[str]) -> Any:
    count = sum(before[n].numel() for n in masked)
    zeros = sum(int((after[n] == 0).sum()) for n in masked)
    plain = plain_bytes(before)
    return {
        "weights": count,
        "zeros": zeros,
        "share": zeros / count,
        "bytes": {
            "dense": len(plain),
            "dense_deflated": len(zlib.compress(plain)),
            "masked_deflated": len(zlib.compress(plain_bytes(after))),
            "bitmap": len(bitmap_bytes(after)),
            "bitmap_deflated": len(sparse_bytes(after)),
        },
    }


def _latency(
    program: Program, after: dict[str, Tensor], target: str, threads: int
) -> dict[str, Any]:
    """The compiled network, dense and masked, timed in turn."""
    chosen = read_target(target, threads, compiles=True)
    check_runnable(chosen)
    dense = build(program, chosen, threads).artifact
    held = program.module.state_dict()
    for name, tensor in after.items():
        if name in held:
            held[name].copy_(tensor)
    masked = build(program, chosen, threads).artifact
    pair = interleaved(dense, masked)
    return {
        "dense_us": pair.dense_us,
        "masked_us": pair.pruned_us,
        "ratio": pair.ratio,
        "source": "device",
    }
