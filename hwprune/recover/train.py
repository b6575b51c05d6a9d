"""Fine-tuning: a plain, seeded training loop with distillation that resumes where it was stopped.

In: a trainable module (the pruned GraphModule, or any other), batches, perhaps the dense
model as teacher. Out: `TrainResult`; the module is trained in place and left in eval mode.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hwprune.errors import HwpruneError
from hwprune.recover.average import Average
from hwprune.recover.callback import Callback, Step
from hwprune.recover.checkpoint import load_weights, read_checkpoint, write_checkpoint
from hwprune.recover.config import TrainConfig, check_config, learning_rate, make_optimizer
from hwprune.recover.features import Features
from hwprune.recover.objective import Objective, distillation_loss, split
from hwprune.recover.processes import Processes

__all__ = ["Step", "TrainConfig", "TrainResult", "distillation_loss", "finetune"]

Batch = Any  # (images, labels), or images alone where only the teacher says what is right
Loader = Iterable[Batch] | Callable[[int], Iterable[Batch]]


@dataclass(frozen=True)
class TrainResult:
    """Mean loss of every finished epoch; `stopped` says why training ended early, else ""."""

    losses: tuple[float, ...]
    stopped: str = ""


def finetune(
    module: nn.Module,
    loader: Loader,
    steps_per_epoch: int,
    config: TrainConfig | None = None,
    *,
    teacher: nn.Module | None = None,
    features: Features | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[Step], None] | None = None,
    callbacks: Sequence[Callback] = (),
    processes: Processes | None = None,
) -> TrainResult:
    """Train `module` in place; the same seed gives the same weights, resumed or not.

    Args:
        module: takes the images of a batch, returns logits (N, classes).
        loader: an iterable of batches, or a function of the epoch (from 0) that returns one.
            torch's global generator is seeded per epoch, so a shuffling DataLoader resumes too.
        steps_per_epoch: batches per epoch, for the schedule; extra batches are not drawn.
        config: see TrainConfig.
        teacher: its logits are the distillation target; run in eval mode, without gradients.
        features: values inside both networks to distil as well; they bring the teacher.
        checkpoint: written after every epoch, atomically, and resumed from where it exists.
        progress: called after every step.
        callbacks: told after every step and epoch (pruners, for instance); may change weights.
        processes: of a training in several (`distributed`); the loader is this process's share.

    A loss that is not finite ends training with the weights of the last finished epoch.
    Raises HwpruneError for an impossible schedule, a checkpoint that is corrupt or of another
    network or settings, labels, outputs or batches that do not fit, a loader that fails or gives
    too few; the module then has the weights of the last finished epoch, as the checkpoint does.
    """
    config = config or TrainConfig()
    check_config(config, steps_per_epoch)
    if features is not None:
        features.check(module)
    objective = Objective(config, teacher, features)
    run = _Run(module, config, steps_per_epoch, objective, processes or Processes())
    run.told = (*([_Told(progress)] if progress is not None else []), *callbacks)
    if checkpoint is not None and checkpoint.exists():
        run.load(checkpoint)
    stopped = ""
    with torch.random.fork_rng(devices=[]):
        while len(run.losses) < config.epochs and not stopped:
            stopped = run.guarded_epoch(loader)
            if checkpoint is not None and not stopped:
                run.save(checkpoint)
    run.end()
    return TrainResult(tuple(run.losses), stopped)


class _Told(Callback):
    """A progress function as a callback."""

    def __init__(self, progress: Callable[[Step], None]) -> None:
        self._progress = progress

    def after_step(self, step: Step) -> None:
        self._progress(step)


class _Run:
    """The state of one training run: what a checkpoint holds, and how to advance an epoch."""

    def __init__(
        self,
        module: nn.Module,
        config: TrainConfig,
        steps_per_epoch: int,
        objective: Objective,
        processes: Processes,
    ) -> None:
        self.module, self.config, self.steps = module, config, steps_per_epoch
        self.objective, self.processes = objective, processes
        self.optimizer = make_optimizer(module, config)
        self.average = Average(module, config.ema) if config.ema else None
        runs = objective.features.student if objective.features is not None else module
        self.student = processes.wrap(runs)
        self.losses: list[float] = []
        self.told: tuple[Callback, ...] = ()

    def guarded_epoch(self, loader: Loader) -> str:
        """An epoch; weights and average are as before it where it fails or has to stop."""
        good = copy.deepcopy(self.module.state_dict())
        average = self.average.state() if self.average is not None else {}
        try:
            stopped = self.epoch(loader)
        except HwpruneError:
            self._back(good, average)
            self.end()
            raise
        if stopped:
            self._back(good, average)
        return stopped

    def _back(self, good: dict[str, Tensor], average: dict[str, object]) -> None:
        self.module.load_state_dict(good)
        if self.average is not None:
            self.average.restore(average)

    def epoch(self, loader: Loader) -> str:
        """Train one epoch; returns why it had to stop, or ""."""
        number = len(self.losses)
        torch.manual_seed(self.config.seed + 7919 * number)
        for part in (self.module, self.student):
            part.train(not self.config.eval_mode)
        total, last = 0.0, self.steps * self.config.epochs
        for index, batch in enumerate(self._draw(loader, number)):
            lr = learning_rate(self.config, number * self.steps + index, last)
            loss = self._step(batch, lr, f"step {index} of epoch {number}")
            if not math.isfinite(loss):
                return f"the loss was {loss} at step {index} of epoch {number}"
            total += loss
            if self.average is not None:
                self.average.update(self.module)
            for callback in self.told:
                callback.after_step(Step(number, index, loss, lr))
        for callback in self.told:
            callback.after_epoch(number)
        self.losses.append(total / self.steps)
        return ""

    def _draw(self, loader: Loader, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, exactly as many as were promised."""
        batches: Iterator[Batch] = iter(())
        for index in range(self.steps):
            error: HwpruneError | None = None
            batch: Batch = None
            try:
                if index == 0:
                    batches = iter(loader(epoch) if callable(loader) else loader)
                batch = next(batches)
            except StopIteration:
                error = _short(index, self.steps, epoch)
            except HwpruneError as own:
                error = own
            except Exception as failure:  # of the user's data set, or a worker that died
                lines = str(failure).strip().splitlines() or [""]  # a worker's has its whole trace
                error = HwpruneError(
                    f"the loader failed: {type(failure).__name__}: {lines[-1]}",
                    where=f"step {index} of epoch {epoch}",
                    hint="the weights are those of the last finished epoch",
                )
                error.__cause__ = failure
            self.processes.agree(error)
            yield batch

    def _step(self, batch: Batch, lr: float, where: str) -> float:
        loss, error = torch.zeros(()), None
        try:
            split(batch)
            loss = self.objective(self.student, batch)
        except HwpruneError as mistake:
            place = f"{mistake.where}, {where}" if mistake.where else where
            error = type(mistake)(mistake.what, where=place, hint=mistake.hint)
        self.processes.agree(error)
        value = loss.item()
        if not self.processes.all_finite(math.isfinite(value)):
            return value if not math.isfinite(value) else math.nan
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
        if not math.isfinite(norm.item()):
            return math.nan
        self.optimizer.step()
        return value

    def end(self) -> None:
        """Leave the module as the result: averaged where that was asked, in evaluation mode."""
        if self.average is not None and self.losses:
            self.module.load_state_dict(self.average.tensors)
        self.module.eval()
        self.student.eval()

    def save(self, path: Path) -> None:
        """Write what `load` needs; in one process of several."""
        if self.processes.rank == 0:
            state = {
                "config": self._settings(),
                "module": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "losses": self.losses,
                "average": self.average.state() if self.average is not None else {},
                "callbacks": [callback.state_dict() for callback in self.told],
            }
            write_checkpoint(path, state)
        self.processes.wait()

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of the same settings and network."""
        state = read_checkpoint(path, self._settings(), asdict(TrainConfig()) | {"processes": 1})
        load_weights(self.module, state["module"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = list(state["losses"])
        if self.average is not None:
            self.average.restore(state["average"])
        kept = [s for s in state.get("callbacks", []) if s]
        for callback in self.told:
            if callback.state_dict() and kept:
                callback.load_state_dict(kept.pop(0))

    def _settings(self) -> dict[str, Any]:
        processes = {"processes": self.processes.size}
        return asdict(self.config) | {"steps_per_epoch": self.steps} | processes


def _short(found: int, promised: int, epoch: int) -> HwpruneError:
    """The loader has no more batches."""
    if found == 0 and epoch == 0:
        return HwpruneError("the loader gave no batches", where=f"epoch {epoch}")
    if found == 0:
        return HwpruneError(
            "the loader is exhausted: it gave its batches once",
            where=f"epoch {epoch}",
            hint="pass a DataLoader, a list, or a function of the epoch",
        )
    return HwpruneError(
        f"the loader gave {found} batches, steps_per_epoch is {promised}",
        where=f"epoch {epoch}",
        hint="say how many there are",
    )
