"""Training for the accuracy benchmark: resumable, on any device, judged after every epoch.

In: a module, images, a `TrainConfig`. Out: per cent of the test images right after every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy_teacher import Remembered
from benchmarks.common import console
from examples.fashion_mnist import Batches, Split
from hwprune.errors import HwpruneError
from hwprune.recover import Callback, TrainConfig, finetune, training_bar

BATCH = 128
JUDGED_AT_ONCE = 500


def accuracy(module: nn.Module, split: Split, device: str = "cpu") -> float:
    """Per cent of the images that are classified right; the module is left in evaluation mode."""
    module.eval()
    right = 0
    with torch.no_grad():
        for images, labels in zip(
            split.images.split(JUDGED_AT_ONCE), split.labels.split(JUDGED_AT_ONCE), strict=True
        ):
            right += int((module(images.to(device)).argmax(1).cpu() == labels).sum())
    return round(100.0 * right / len(split), 4)


class Judge(Callback):
    """Accuracy on the test images after every epoch, kept in the checkpoint."""

    def __init__(self, module: nn.Module, split: Split, device: str) -> None:
        self.module, self.split, self.device = module, split, device
        self.found: list[float] = []

    def after_epoch(self, epoch: int) -> None:
        self.found = [*self.found[:epoch], accuracy(self.module, self.split, self.device)]

    def state_dict(self) -> dict[str, Any]:
        return {"found": list(self.found)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.found = list(state["found"])


def train(
    module: nn.Module,
    data: tuple[Split, Split],
    config: TrainConfig,
    checkpoint: Path,
    title: str,
    *,
    device: str = "cpu",
    teacher: Remembered | None = None,
    callbacks: Sequence[Callback] = (),
) -> list[float]:
    """Train in place, from where the checkpoint is; accuracies on the second split by epoch.

    `callbacks` are told before accuracy is judged. The module comes back on the CPU. Raises
    HwpruneError where the loss stops being finite.
    """
    batches = Batches(data[0], BATCH, seed=config.seed)

    def draw(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        drawn = batches(epoch)
        if teacher is not None:
            drawn = teacher.follow(epoch, drawn, len(batches))
        return ((x.to(device), y.to(device)) for x, y in drawn)

    for part in (module, teacher):
        if part is not None:
            part.to(device)
    module.to(memory_format=torch.channels_last)  # trains faster
    judge = Judge(module, data[1], device)
    with training_bar(title, config.epochs, len(batches), console) as report:
        result = finetune(
            module,
            draw,
            len(batches),
            config,
            teacher=teacher,
            checkpoint=checkpoint,
            progress=report,
            callbacks=(*callbacks, judge),
        )
    for part in (module, teacher):
        if part is not None:
            part.to("cpu")
    module.to(memory_format=torch.contiguous_format)
    if result.stopped:
        raise HwpruneError(f"training stopped: {result.stopped}", where=title)
    return judge.found
