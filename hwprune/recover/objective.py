"""What training minimises: cross entropy, distillation on logits and on features.

In: a batch and what the network makes of it. Out: the loss. Labels and outputs that do not belong
together are refused before they can do harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwprune.errors import HwpruneError
from hwprune.recover.config import BFLOAT16, TrainConfig
from hwprune.recover.features import Features

IGNORED = -100  # cross entropy skips it


class Objective:
    """The loss of a batch. With `features` the networks they are taken from run instead."""

    def __init__(
        self, config: TrainConfig, teacher: nn.Module | None, features: Features | None
    ) -> None:
        self.config, self.features = config, features
        chosen = features.teacher if features is not None else teacher
        self.teacher = chosen.eval() if chosen is not None else None

    def __call__(self, student: nn.Module, batch: Any) -> Tensor:
        """The loss, a scalar. Raises HwpruneError for labels or a teacher that do not fit."""
        images, labels = split(batch)
        wanted: Any = None
        with torch.autocast(
            images.device.type, torch.bfloat16, enabled=self.config.precision == BFLOAT16
        ):
            found = student(images)
            if self.teacher is not None:
                with torch.no_grad():
                    wanted = self.teacher(images)
        if self.features is None:
            return self._loss(_logits(found), _maybe(wanted), labels)
        error = self.features.error(found[1], wanted[1])
        loss = self._loss(_logits(found[0]), _maybe(wanted[0]), labels)
        return loss + self.config.feature_weight * error

    def _loss(self, logits: Tensor, target: Tensor | None, labels: Tensor | None) -> Tensor:
        config = self.config
        share = config.distill if target is not None else 0.0
        if labels is None:
            share = 1.0
        terms: list[Tensor] = []
        if share < 1.0:
            assert labels is not None
            check_labels(labels, logits)
            smoothing = config.label_smoothing
            entropy = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
            terms.append((1.0 - share) * entropy)
        if share > 0.0:
            if target is None:
                raise HwpruneError("batches without labels need a teacher to learn from")
            if target.shape != logits.shape:
                raise HwpruneError(
                    f"gives outputs of shape {tuple(target.shape)}, the student "
                    f"{tuple(logits.shape)}",
                    where="teacher",
                    hint="take the dense network that was pruned",
                )
            terms.append(share * distillation_loss(logits, target, config.temperature))
        return torch.stack(terms).sum()


def distillation_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """temperature^2 * KL(softmax(target / t) || softmax(logits / t)), mean over the batch."""
    student = functional.log_softmax(logits / temperature, dim=-1)
    teacher = functional.log_softmax(target / temperature, dim=-1)
    kl = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return kl * temperature**2


def split(batch: Any) -> tuple[Tensor, Tensor | None]:
    """(images, labels or None) of a batch. Raises HwpruneError for one of another kind."""
    parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if len(parts) not in (1, 2) or not all(isinstance(p, Tensor) for p in parts):
        kinds = ", ".join(type(p).__name__ for p in parts)
        raise HwpruneError(
            f"a batch holds {kinds}", where="loader", hint="(images, labels), or images alone"
        )
    return parts[0], parts[1] if len(parts) == 2 else None


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Raise HwpruneError where labels do not belong to the logits of a batch."""
    if labels.is_floating_point():
        if labels.shape != logits.shape:
            raise HwpruneError(
                f"probabilities of shape {tuple(labels.shape)} for outputs of shape "
                f"{tuple(logits.shape)}",
                where="labels",
            )
        return
    wanted = (logits.shape[0], *logits.shape[2:])
    if tuple(labels.shape) != wanted:
        raise HwpruneError(
            f"have shape {tuple(labels.shape)}, outputs of shape {tuple(logits.shape)} need "
            f"{wanted}",
            where="labels",
        )
    classes = logits.shape[1]
    wrong = ((labels < 0) | (labels >= classes)) & (labels != IGNORED)
    if bool(wrong.any()):
        raise HwpruneError(
            f"label {int(labels[wrong][0])} is out of range, the model has {classes} classes",
            where="labels",
            hint=f"classes count from 0 to {classes - 1}",
        )


def _logits(output: Any) -> Tensor:
    """The logits among what a network gives, float32."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif isinstance(output, tuple | list) and len(output) == 1:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim < 2:
        raise HwpruneError(
            "the network's output is not one tensor of logits, (N, classes)",
            hint="wrap it in a module that gives them",
        )
    return output.float()


def _maybe(output: Any) -> Tensor | None:
    return None if output is None else _logits(output)
