"""Torch-Pruning on a pretrained network under a budget of multiply-accumulates, without labels.

In: a module and a share of its multiply-accumulates. Out: the smaller network and which channels it
kept. Nothing is timed, so that channels are not rounded to a vector's width: that serves it best.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.accuracy_fit import Kept
from benchmarks.accuracy_peers import prune
from hwprune.errors import BudgetError

STEPS = 12
NEAR = 0.995  # of the budget, that ends the search


def within_macs(
    module: nn.Module, head: str, image: Tensor, system: str, share: float
) -> tuple[nn.Module, Kept]:
    """The largest network found within a share of the multiply-accumulates, and what it kept.

    Bisects the ratio of channels. Raises BudgetError where none is within it.
    """
    budget = share * multiply_accumulates(module, image)
    found: tuple[float, nn.Module, Kept] | None = None
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        ratio = (low + high) / 2
        smaller, kept = prune(copy.deepcopy(module), image, system, ratio, 1, head)
        used = multiply_accumulates(smaller, image)
        if used > budget:
            low = ratio
            continue
        high = ratio
        if found is None or used > found[0]:
            found = used, smaller, kept
        if used >= NEAR * budget:
            break
    if found is None:
        raise BudgetError(f"{system} finds no network of {share:.0%} of the multiply-accumulates")
    return found[1], found[2]


def multiply_accumulates(module: nn.Module, image: Tensor) -> float:
    """Of one image, those of convolutions and linear layers, as PyTorch counts them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(image)
    return counter.get_total_flops() / 2
