"""Quantization-aware fine-tuning: train the simulation of a quantized network, quantize again.

In: a `Quantized`, batches. Out: a `Quantized` with the same scales of values and trained weights.
The loop is that of `recover/train.py`; gradients pass straight through the rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from hwprune.quantize.quantizer import Quantized
from hwprune.recover.callback import Step
from hwprune.recover.config import TrainConfig
from hwprune.recover.train import Loader, TrainResult, finetune


def tune(
    quantized: Quantized,
    loader: Loader,
    steps_per_epoch: int,
    config: TrainConfig | None = None,
    *,
    teacher: nn.Module | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[Step], None] | None = None,
) -> tuple[Quantized, TrainResult]:
    """Train with every weight and value rounded as the integers will be; arguments as `finetune`.

    Batch norms are folded, so their statistics stay what they are. A rate of learning of a tenth
    of the float network's last one is enough. Raises what `finetune` raises.
    """
    config = config or TrainConfig(epochs=1, lr=0.005, weight_decay=0.0)
    simulation = quantized.simulation()
    result = finetune(
        simulation, loader, steps_per_epoch, config, teacher=teacher, checkpoint=checkpoint,
        progress=progress,
    )  # fmt: skip
    return quantized.with_weights(simulation), result
