"""One of several processes that train a network together, as torchrun starts it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from hwprune.errors import HwpruneError
from hwprune.recover import TrainConfig, distributed, finetune

CONFIG = TrainConfig(epochs=2, lr=0.05, momentum=0.5)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))


def batches(label: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Eight batches of four pictures; `label` is that of the last of all."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 1, 6, 6, generator=generator)
    labels = torch.arange(32) % 3
    labels[-1] = label
    return list(zip(images.split(4), labels.split(4), strict=True))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with distributed() as processes:
        net = network()
        checkpoint = folder / "checkpoint.pt"
        result = finetune(
            net, processes.share(batches()), 4, CONFIG, processes=processes, checkpoint=checkpoint
        )
        state = {"losses": result.losses, "weights": net.state_dict()}
        torch.save(state, folder / f"rank-{processes.rank}.pt")
        try:
            finetune(network(), processes.share(batches(label=7)), 4, CONFIG, processes=processes)
        except HwpruneError as error:
            (folder / f"error-{processes.rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
