"""How to train: the settings, what is impossible among them, the optimiser and its schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from hwprune.errors import HwpruneError

FLOAT32, BFLOAT16 = "float32", "bfloat16"


@dataclass(frozen=True)
class TrainConfig:
    """How to train: cosine schedule after a linear warm-up, `distill` in [0, 1] of the loss.

    loss = (1 - distill) * cross entropy + distill * temperature^2 * KL(teacher, student)
           + feature_weight * squared error of features over their mean square.
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
    feature_weight: float = 1.0  # counts only where features are given
    ema: float = 0.0  # decay of the average of the weights that is the result; 0: the last weights
    precision: str = FLOAT32  # "bfloat16": activations (autocast); weights stay float32


def check_config(config: TrainConfig, steps_per_epoch: int) -> None:
    """Raise HwpruneError, naming the setting, for a schedule that is impossible."""
    rules: list[tuple[str, bool, str]] = [
        ("epochs", _whole(config.epochs) and config.epochs >= 1, "a whole number from 1"),
        ("lr", 0 < config.lr < math.inf, "above 0"),
        ("momentum", 0 <= config.momentum < 1, "at least 0 and below 1"),
        ("weight_decay", 0 <= config.weight_decay < math.inf, "0 or more"),
        ("label_smoothing", 0 <= config.label_smoothing < 1, "at least 0 and below 1"),
        ("distill", 0 <= config.distill <= 1, "between 0 and 1"),
        ("temperature", 0 < config.temperature < math.inf, "above 0"),
        ("warmup_fraction", 0 <= config.warmup_fraction <= 1, "between 0 and 1"),
        ("clip_norm", config.clip_norm > 0, "above 0; inf does not clip"),
        ("feature_weight", 0 <= config.feature_weight < math.inf, "0 or more"),
        ("ema", 0 <= config.ema < 1, "at least 0 and below 1"),
        ("precision", config.precision in (FLOAT32, BFLOAT16), f"{FLOAT32} or {BFLOAT16}"),
    ]
    for name, holds, hint in rules:
        if not holds:
            raise HwpruneError(f"{getattr(config, name)!r} is impossible", where=name, hint=hint)
    if config.optimizer not in ("sgd", "adamw"):
        raise HwpruneError(f"unknown optimizer {config.optimizer!r}", hint="sgd or adamw")
    if not _whole(steps_per_epoch) or steps_per_epoch < 1:
        raise HwpruneError(
            f"{steps_per_epoch!r} is impossible", where="steps_per_epoch", hint="at least 1"
        )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a configuration; biases and norms are not decayed."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if not groups:
        raise HwpruneError("nothing to train: no parameter requires a gradient")
    if config.optimizer == "sgd":
        nesterov = config.momentum > 0
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
    return torch.optim.AdamW(groups, lr=config.lr)


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """The learning rate of a step (from 0) of `total`."""
    warmup = max(1, round(total * config.warmup_fraction))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * done))
