"""What may be told of training as it goes: by `finetune`, or by a loop of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """One finished optimisation step."""

    epoch: int
    index: int  # within the epoch
    loss: float
    lr: float


class Callback:
    """Told after every step and epoch; may change the weights. Its state is in checkpoints."""

    def after_step(self, step: Step) -> None:
        """An optimisation step was taken."""

    def after_epoch(self, epoch: int) -> None:
        """An epoch (from 0) ended."""

    def state_dict(self) -> dict[str, Any]:
        """What it has to remember, of types that torch.load reads as weights."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember that again."""
