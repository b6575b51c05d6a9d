"""A network of the accuracy benchmark of int8: quantized in every way and tested.

In: a `Subject`. Out: a `Row`: float, by the integer reference, and on the emulated board.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import console
from benchmarks.mcu_images import OnBoard, on_board
from examples.fashion_mnist import Split
from hwprune.atomic import write_text
from hwprune.capture import capture
from hwprune.quantize.config import QuantConfig
from hwprune.quantize.quantizer import Quantized, quantize_program
from hwprune.quantize.tune import tune
from hwprune.recover import TrainConfig, training_bar

CORE = "cortex-m4"
EVALUATION = 250  # images per call of the integer reference


@dataclass(frozen=True)
class Row:
    """A network before or after pruning; accuracies in per cent of the test images.

    `int8_accuracy` by the method of calibration; `tuned_accuracy` after quantization-aware
    fine-tuning; `agreement` of int8 (mse) with float, in per cent of the images. `lost`: points
    from float to int8 (mse) of this network; `lost_to_dense`: points from the float dense network
    to this one in int8 (mse), on the images that the emulated board ran, else on all.
    `latency_share` of the dense network's, by a model of the core.
    """

    model: str
    variant: str
    macs: int
    params: int
    float_accuracy: float
    int8_accuracy: dict[str, float]
    tuned_accuracy: float | None
    agreement: float
    lost: float
    lost_to_dense: float
    test_images: int
    on_board: OnBoard | None = None
    latency_share: float | None = None


METHODS = {
    "minmax": QuantConfig("minmax"),
    "percentile": QuantConfig("percentile"),
    "mse": QuantConfig("mse"),
    "mse, equalised and corrected": QuantConfig("mse", equalise=True, correct_bias=True),
}


Batch = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Subject:
    """A network to quantize and test: `output` says which of its outputs are the classes."""

    name: str
    variant: str
    module: nn.Module
    teacher: nn.Module
    calibration: torch.Tensor
    test: Split
    batches: Callable[[int], Iterable[Batch]]  # of an epoch of fine-tuning
    steps: int
    output: int = 0


def tuned(subject: Subject, quantized: Quantized, checkpoint: Path) -> Quantized:
    """After a short quantization-aware fine-tuning."""
    config = TrainConfig(epochs=1, lr=0.003, weight_decay=0.0, distill=0.7)
    with training_bar(f"{subject.name}: tune", 1, subject.steps, console) as report:
        return tune(
            quantized, subject.batches, subject.steps, config, teacher=subject.teacher,
            checkpoint=checkpoint, progress=report,
        )[0]  # fmt: skip


def float_classes(subject: Subject, module: nn.Module) -> np.ndarray:
    with torch.no_grad():
        parts = [
            tree_leaves(module(images))[subject.output].argmax(1)
            for images in subject.test.images.split(EVALUATION)
        ]
    return torch.cat(parts).numpy()


def int8_classes(subject: Subject, quantized: Quantized) -> np.ndarray:
    parts = [
        quantized(images)[subject.output].argmax(1)
        for images in subject.test.images.split(EVALUATION)
    ]
    return np.concatenate(parts)


def per_cent(right: np.ndarray) -> float:
    return round(100.0 * float(right.mean()), 2)


def row(subject: Subject, cache: Path, emulate: int = 0) -> Row:
    """Quantize one network in every way and test it; `emulate` images on the board (mse) too."""
    labels = subject.test.labels.numpy()
    example = subject.calibration[:1]
    subject.module.eval()
    program = capture(subject.module, (example,), name=subject.name)
    plain = float_classes(subject, subject.module)
    made = {
        name: quantize_program(program, subject.calibration, config)
        for name, config in METHODS.items()
    }
    classes = {name: int8_classes(subject, quantized) for name, quantized in made.items()}
    after: float | None = None
    if subject.steps:
        checkpoint = cache / f"{subject.name}-{subject.variant}-tuned.pt"
        better = tuned(subject, made["mse"], checkpoint)
        after = per_cent(int8_classes(subject, better) == labels)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        subject.module(example)
    accuracy = per_cent(plain == labels)
    board = None
    if emulate:
        board = on_board(made["mse"], subject.test.take(emulate), subject.output, CORE)
    seen = board.images if board else len(labels)
    teacher = float_classes(subject, subject.teacher.eval())[:seen]
    found = board.accuracy if board else per_cent(classes["mse"] == labels)
    return Row(
        model=subject.name,
        variant=subject.variant,
        macs=counter.get_total_flops() // 2,
        params=sum(p.numel() for p in subject.module.parameters()),
        float_accuracy=accuracy,
        int8_accuracy={name: per_cent(found == labels) for name, found in classes.items()},
        tuned_accuracy=after,
        agreement=per_cent(classes["mse"] == plain),
        lost=round(accuracy - per_cent(classes["mse"] == labels), 2),
        lost_to_dense=round(per_cent(teacher == labels[:seen]) - found, 2),
        test_images=len(labels),
        on_board=board,
    )


def rows_of(subjects: Iterable[Subject], cache: Path, key: str, emulate: int = 0) -> list[Row]:
    """The rows of a network, the dense one first; those that an earlier run made are read.

    `key` tells apart what the subjects do not say: how they were made.
    """
    rows: list[Row] = []
    for subject in subjects:
        file = cache / f"{subject.name}-{subject.variant}-{key}-{len(subject.test)}-{emulate}.json"
        if file.exists():
            rows.append(read_row(file.read_text()))
            continue
        made = row(subject, cache, emulate)
        first = (rows or [made])[0].on_board
        if made.on_board is not None and first is not None:
            share = made.on_board.latency_ms / first.latency_ms
            made = replace(made, latency_share=round(share, 4))
        write_text(file, json.dumps(asdict(made)))
        rows.append(made)
    return rows


def read_row(text: str) -> Row:
    """A row from its JSON."""
    found = json.loads(text)
    board = found.pop("on_board")
    return Row(**found, on_board=None if board is None else OnBoard(**board))
