"""Fine-tuning: a plain, seeded training loop with distillation that resumes where it was stopped.

In: a trainable module (the pruned GraphModule, or any other), batches, perhaps the dense
model as teacher. Out: `TrainResult`; the module is trained in place and left in eval mode.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwprune.errors import HwpruneError

Batch = Any  # (images, labels), or images alone where only the teacher says what is right
Loader = Iterable[Batch] | Callable[[int], Iterable[Batch]]


@dataclass(frozen=True)
class TrainConfig:
    """How to train: cosine schedule after a linear warm-up, `distill` in [0, 1] of the loss.

    loss = (1 - distill) * cross entropy + distill * temperature^2 * KL(teacher, student).
    """

    epochs: int = 5
    lr: float = 0.05
    optimizer: str = "sgd"  # "sgd" (Nesterov) | "adamw"
    momentum: float = 0.9
    weight_decay: float = 5e-4  # on weights with two or more dimensions only
    label_smoothing: float = 0.0
    distill: float = 0.5  # counts only where a teacher is given
    temperature: float = 2.0
    warmup_fraction: float = 0.1
    clip_norm: float = 5.0
    seed: int = 0
    eval_mode: bool = False  # normalise by the running statistics (few or odd images), no dropout


@dataclass(frozen=True)
class Step:
    """One finished optimisation step, as given to the progress callback."""

    epoch: int
    index: int  # within the epoch
    loss: float
    lr: float


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
    checkpoint: Path | None = None,
    progress: Callable[[Step], None] | None = None,
) -> TrainResult:
    """Train `module` in place; the same seed gives the same weights, resumed or not.

    Args:
        module: takes the images of a batch, returns logits (N, classes).
        loader: an iterable of batches, or a function of the epoch (from 0) that returns one.
            torch's global generator is seeded per epoch, so a shuffling DataLoader resumes too.
        steps_per_epoch: batches per epoch, for the schedule; extra batches are not drawn.
        config: see TrainConfig.
        teacher: its logits are the distillation target; run in eval mode, without gradients.
        checkpoint: written after every epoch, atomically, and resumed from where it exists.
        progress: called after every step.

    A loss that is not finite ends training with the weights of the last finished epoch.
    Raises HwpruneError where the checkpoint is corrupt or of other settings.
    """
    config = config or TrainConfig()
    run = _Run(module, config, steps_per_epoch, teacher, progress)
    if checkpoint is not None and checkpoint.exists():
        run.load(checkpoint)
    stopped = ""
    with torch.random.fork_rng(devices=[]):
        while len(run.losses) < config.epochs and not stopped:
            good = copy.deepcopy(module.state_dict())
            stopped = run.epoch(loader)
            if stopped:
                module.load_state_dict(good)
            elif checkpoint is not None:
                run.save(checkpoint)
    module.eval()
    return TrainResult(tuple(run.losses), stopped)


class _Run:
    """The state of one training run: what a checkpoint holds, and how to advance an epoch."""

    def __init__(
        self,
        module: nn.Module,
        config: TrainConfig,
        steps_per_epoch: int,
        teacher: nn.Module | None,
        progress: Callable[[Step], None] | None,
    ) -> None:
        self.module, self.config, self.steps = module, config, steps_per_epoch
        self.teacher = teacher.eval() if teacher is not None else None
        self.progress = progress
        self.optimizer = _optimizer(module, config)
        self.losses: list[float] = []

    def epoch(self, loader: Loader) -> str:
        """Train one epoch; returns why it had to stop, or ""."""
        number = len(self.losses)
        torch.manual_seed(self.config.seed + 7919 * number)
        batches = loader(number) if callable(loader) else loader
        self.module.train(not self.config.eval_mode)
        total, count = 0.0, 0
        for index, batch in zip(range(self.steps), batches, strict=False):
            lr = _lr(self.config, number * self.steps + index, self.steps * self.config.epochs)
            loss = self._step(batch, lr)
            if not math.isfinite(loss):
                return f"the loss was {loss} at step {index} of epoch {number}"
            total, count = total + loss, count + 1
            if self.progress is not None:
                self.progress(Step(number, index, loss, lr))
        if count == 0:
            raise HwpruneError("the loader gave no batches", where=f"epoch {number}")
        self.losses.append(total / count)
        return ""

    def _step(self, batch: Batch, lr: float) -> float:
        images, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
        loss = self._loss(images, labels)
        value = loss.item()
        if math.isfinite(value):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
            if not math.isfinite(norm.item()):
                return math.nan
            self.optimizer.step()
        return value

    def _loss(self, images: Tensor, labels: Tensor | None) -> Tensor:
        config, logits = self.config, self.module(images)
        terms: list[Tensor] = []
        share = config.distill if self.teacher is not None else 0.0
        if labels is None:
            share = 1.0
        elif share < 1.0:
            smoothing = config.label_smoothing
            entropy = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
            terms.append((1.0 - share) * entropy)
        if share > 0.0:
            if self.teacher is None:
                raise HwpruneError("batches without labels need a teacher to learn from")
            with torch.no_grad():
                target = self.teacher(images)
            terms.append(share * distillation_loss(logits, target, config.temperature))
        return torch.stack(terms).sum()

    def save(self, path: Path) -> None:
        """Write the state beside `path` and move it into place."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "config": asdict(self.config) | {"steps_per_epoch": self.steps},
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
        }
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            torch.save(state, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of the same settings."""
        hint = f"delete {path} to start again"
        try:
            state = torch.load(path, weights_only=True)
            saved = state["config"]
            settings = asdict(self.config) | {"steps_per_epoch": self.steps}
            if asdict(TrainConfig()) | saved != settings:  # absent ones were the defaults
                raise HwpruneError(
                    f"the checkpoint was trained with other settings: {saved}",
                    where=str(path),
                    hint=hint,
                )
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.losses = list(state["losses"])
        except HwpruneError:
            raise
        except Exception as error:  # a damaged file makes torch raise almost anything
            raise HwpruneError(
                f"the checkpoint cannot be read: {type(error).__name__}: {error}",
                where=str(path),
                hint=hint,
            ) from error


def distillation_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """temperature^2 * KL(softmax(target / t) || softmax(logits / t)), mean over the batch."""
    student = functional.log_softmax(logits / temperature, dim=-1)
    teacher = functional.log_softmax(target / temperature, dim=-1)
    kl = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return kl * temperature**2


def _optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if config.optimizer == "sgd":
        nesterov = config.momentum > 0
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    raise HwpruneError(f"unknown optimizer {config.optimizer!r}", hint="sgd or adamw")


def _lr(config: TrainConfig, step: int, total: int) -> float:
    warmup = max(1, round(total * config.warmup_fraction))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * done))
