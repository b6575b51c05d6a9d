"""Capture: `nn.Module` or `.pt2` + example inputs -> `Program`, by torch.export."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx


@dataclass(frozen=True)
class Program:
    """A captured network: an ATen graph that runs, trains and saves.

    `module` is the unlifted GraphModule of torch.export (parameters and buffers as `get_attr`
    nodes under their original dotted names; every tensor node has a fake tensor in
    `meta["val"]`). `inputs` are the example inputs, batch first.
    """

    module: fx.GraphModule
    inputs: tuple[Tensor, ...]
    name: str
    dynamic_batch: bool


__all__ = ["Program", "torch"]
