"""What int8 costs in accuracy: trained, pruned by MACs, quantized, run as integers.

    python -m benchmarks.mcu_accuracy [--quick] [--out FILE] [--cache DIR] [--model NAME] [--seed N]
        [--emulate N]

Accuracies of int8 networks are those of the integer reference, which computes bit for bit what a
microcontroller does; N of the test images also run on an emulated Cortex-M4. Everything slow is
kept under --cache and resumed from there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import hwprune
from benchmarks import common
from benchmarks.common import console
from benchmarks.fashion_mnist import save_module, train
from benchmarks.mcu_images import OnBoard, on_board
from examples import fashion_mnist, models, tiny
from examples.fashion_mnist import Batches, Split
from hwprune.capture import capture
from hwprune.quantize.config import QuantConfig
from hwprune.quantize.quantizer import Quantized, quantize_program
from hwprune.quantize.tune import tune
from hwprune.recover import TrainConfig, training_bar

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "mcu_accuracy"
CALIBRATION = 256  # training images
EVALUATION = 250  # images per call of the integer reference


@dataclass(frozen=True)
class Setting:
    """How one network is trained, pruned, recovered and tuned; images of an epoch of each."""

    name: str
    factory: Callable[[int], nn.Module]
    epochs: int
    train_images: int
    recover_images: int
    tune_images: int
    test_images: int


FULL = (
    Setting("resnet8", tiny.fashion_resnet8, 2, 60_000, 30_000, 9_600, 2_000),
    Setting("ds_cnn", tiny.fashion_ds_cnn, 2, 36_000, 30_000, 9_600, 2_000),
)
QUICK = (Setting("quick_ds_cnn", tiny.fashion_ds_cnn, 1, 7_680, 1_280, 640, 250),)


@dataclass(frozen=True)
class Row:
    """A network before or after pruning; accuracies in per cent of the test images.

    `int8_accuracy` by the method of calibration; `tuned_accuracy` after quantization-aware
    fine-tuning; `agreement` of int8 (mse) with float, in per cent of the images.
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
    test_images: int
    on_board: OnBoard | None = None


METHODS = {
    "minmax": QuantConfig("minmax"),
    "percentile": QuantConfig("percentile"),
    "mse": QuantConfig("mse"),
    "mse, equalised and corrected": QuantConfig("mse", equalise=True, correct_bias=True),
}


def train_dense(setting: Setting, data: Split, cache: Path, seed: int) -> nn.Module:
    """The dense network, trained or read."""
    dense: Any = setting.factory(seed)
    dense.to(memory_format=torch.channels_last)  # trains faster
    config = TrainConfig(epochs=setting.epochs, lr=0.1, distill=0.0, seed=seed)
    checkpoint = cache / f"{setting.name}-seed{seed}-dense-{setting.epochs}.pt"
    images = data.take(setting.train_images)
    train(dense, Batches(images, 128, seed=seed), config, checkpoint, f"{setting.name}: train")
    dense.to(memory_format=torch.contiguous_format)
    return dense


def prune_half(
    setting: Setting, dense: nn.Module, data: Split, cache: Path, seed: int
) -> nn.Module:
    """Half the multiply-accumulates, reconstructed, then one epoch with the dense teacher."""
    file = cache / f"{setting.name}-seed{seed}-pruned-{setting.epochs}.pt2"
    if not file.exists():
        with console.status(f"{setting.name}: prune to 50 % of the MACs"):
            result = hwprune.prune(
                dense,
                (data.images[:1],),
                macs="50%",
                seed=seed,
                calibrate=data.images[:CALIBRATION],
            )
        save_module(result.module, data.images[:2].clone(), file)
    pruned = capture(file).module
    config = TrainConfig(epochs=1, lr=0.03, distill=0.7, seed=seed + 1)
    batches = Batches(data.take(setting.recover_images), 128, seed=seed + 1)
    title, checkpoint = f"{setting.name}: recover", file.with_suffix(".pt")
    train(pruned, batches, config, checkpoint, title, teacher=dense)
    return pruned


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


def float_classes(subject: Subject) -> np.ndarray:
    with torch.no_grad():
        parts = [
            tree_leaves(subject.module(images))[subject.output].argmax(1)
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
    plain = float_classes(subject)
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
        test_images=len(labels),
        on_board=on_board(made["mse"], subject.test.take(emulate), subject.output)
        if emulate
        else None,
    )


def fashion_rows(
    setting: Setting, data: Split, cache: Path, seed: int, emulate: int = 0
) -> list[Row]:
    """A network for Fashion-MNIST, dense and pruned."""
    dense = train_dense(setting, data, cache, seed)
    pruned = prune_half(setting, dense, data, cache, seed)
    test = fashion_mnist.load("t10k").take(setting.test_images)
    batches = Batches(data.take(setting.tune_images), 64, seed=2)
    calibration = data.images[:CALIBRATION]
    return [
        row(
            Subject(setting.name, name, net, dense, calibration, test, batches, len(batches)),
            cache,
            emulate,
        )
        for name, net in (("dense", dense), ("pruned", pruned))
    ]


def face_rows(cache: Path, seed: int, emulate: int = 0) -> list[Row]:
    """MTCNN's R-Net on scikit-image's faces and others: half to learn ranges, half to test.

    Nothing is trained: the pruned network is reconstructed from unlabelled images only.
    """
    from skimage.data import lfw_subset

    grey = torch.from_numpy(lfw_subset()).float().unsqueeze(1)
    images = nn.functional.interpolate(grey.repeat(1, 3, 1, 1), (24, 24), mode="bilinear")
    images = (255.0 * images - 127.5) / 128.0
    labels = (torch.arange(len(images)) < len(images) // 2).long()  # faces come first
    seen, test = images[::2], Split(images[1::2], labels[1::2])
    dense = models.rnet().eval()
    pruned = hwprune.prune(dense, (seen[:1],), macs="50%", seed=seed, calibrate=seen).module
    return [
        row(
            Subject("rnet", name, net, dense, seen, test, lambda _: [], 0, output=1), cache, emulate
        )
        for name, net in (("dense", dense), ("pruned", pruned))
    ]


def show(rows: list[Row]) -> None:
    common.table(
        "int8 by the integer reference, accuracy in per cent",
        ("model", "variant", "MACs", "float", *METHODS, "tuned", "agree"),
        [
            (
                *(r.model, r.variant, f"{r.macs / 1e6:.2f} M", f"{r.float_accuracy:.2f}"),
                *(f"{value:.2f}" for value in r.int8_accuracy.values()),
                "-" if r.tuned_accuracy is None else f"{r.tuned_accuracy:.2f}",
                f"{r.agreement:.2f}",
            )
            for r in rows
        ],
        text=2,
    )
    for r in rows:
        if r.on_board is not None:
            b = r.on_board
            console.print(
                f"{r.model}, {r.variant}: {b.exact} of {b.images} images on the emulated {b.core} "
                f"bit for bit the reference's, {b.accuracy:.2f} % right"
            )


def main() -> None:
    parser = common.parser(__doc__, "one network, hardly trained, under a minute")
    parser.add_argument("--cache", type=Path, default=CACHE, help="checkpoints are kept here")
    parser.add_argument("--model", action="append", help="only this network (repeatable)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--emulate", type=int, default=0, metavar="N", help="test images on an emulated Cortex-M4"
    )
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # torch's own
    options.cache.mkdir(parents=True, exist_ok=True)
    data = fashion_mnist.load("train")
    rows: list[Row] = []
    for setting in QUICK if options.quick else FULL:
        if options.model is None or setting.name in options.model:
            rows += fashion_rows(setting, data, options.cache, options.seed, options.emulate)
    if not options.quick and (options.model is None or "rnet" in options.model):
        rows += face_rows(options.cache, options.seed, options.emulate)
    show(rows)
    common.finish(options.out, [asdict(r) for r in rows])


if __name__ == "__main__":
    main()
