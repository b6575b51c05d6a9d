"""Callbacks of other people's training loops: Lightning's, and the Hugging Face Trainer's.

In: a `Callback` (a pruner, for instance). Out: the framework's own callback object. A framework is
imported only when its function is called.
"""

from __future__ import annotations

import importlib
from typing import Any

from hwprune.errors import ToolchainError
from hwprune.recover.callback import Callback, Step


def lightning_callback(callback: Callback) -> Any:
    """For `Trainer(callbacks=[...])` of Lightning; its state is in Lightning's checkpoints.

    Raises ToolchainError where Lightning is not installed.
    """
    base = _module("pytorch_lightning", "lightning.pytorch").Callback

    class Told(base):  # type: ignore[misc,valid-type]
        @property
        def state_key(self) -> str:
            return f"hwprune.{type(callback).__name__}"

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs
            rate = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else 0.0
            index = trainer.fit_loop.batch_idx
            callback.after_step(Step(trainer.current_epoch, index, _number(loss), float(rate)))

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            callback.after_epoch(trainer.current_epoch)

        def state_dict(self) -> dict[str, Any]:
            return callback.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            callback.load_state_dict(state_dict)

    return Told()


def trainer_callback(callback: Callback) -> Any:
    """For `Trainer(callbacks=[...])` of Hugging Face transformers.

    Raises ToolchainError where transformers is not installed.
    """
    base = _module("transformers").TrainerCallback

    class Told(base):  # type: ignore[misc,valid-type]
        epoch, index = 0, 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.epoch, self.index = int(state.epoch or 0), 0

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            optimizer = given.get("optimizer")
            rate = optimizer.param_groups[0]["lr"] if optimizer is not None else 0.0
            losses = [row["loss"] for row in state.log_history if "loss" in row]
            loss = losses[-1] if losses else float("nan")  # the last that was logged
            callback.after_step(Step(self.epoch, self.index, loss, rate))
            self.index += 1

        def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            callback.after_epoch(self.epoch)
            self.epoch, self.index = self.epoch + 1, 0

    return Told()


def _module(*names: str) -> Any:
    """The first of these modules that is installed."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
    raise ToolchainError(f"{names[0]} is not installed", hint=f"install the package {names[0]}")


def _number(loss: Any) -> float:
    return float(loss) if loss is not None else float("nan")
