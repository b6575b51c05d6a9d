"""What int8 costs in accuracy: trained, pruned to half the latency, quantized, run as integers.

    python -m benchmarks.mcu_accuracy [--quick] [--out FILE] [--cache DIR] [--model NAME] [--seed N]
        [--emulate N]

Half the latency is that of an emulated Cortex-M4 by a model of the core (`hwprune compile
--target cortex-m4 --latency 50%`). Accuracies of int8 networks are those of the integer reference,
which computes bit for bit what a microcontroller does; N of the test images also run on the
emulated board. Everything slow is kept under --cache and resumed from there.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import common
from benchmarks.common import console
from benchmarks.fashion_mnist import save_module, train
from benchmarks.mcu_accuracy_row import CORE, METHODS, Row, Subject, rows_of
from examples import fashion_mnist, models, tiny
from examples.fashion_mnist import Batches, Split
from hwprune.capture import capture
from hwprune.mcu_build import compile_mcu
from hwprune.recover import TrainConfig

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "mcu_accuracy"
DENSE, HALF = "dense", "half-latency"
CALIBRATION = 256  # training images


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


def half_latency(dense: nn.Module, images: torch.Tensor, seed: int) -> nn.Module:
    """Half the latency on the core, reconstructed on unlabelled images (N, ...)."""
    with tempfile.TemporaryDirectory() as folder:
        made = compile_mcu(
            dense, (images[:1],), out=Path(folder) / "out", target=CORE, calibrate=images,
            budgets={"latency": "50%"}, seed=seed,
        )  # fmt: skip
    return made.program.module


def prune_half(
    setting: Setting, dense: nn.Module, data: Split, cache: Path, seed: int
) -> nn.Module:
    """Half the latency, reconstructed, then one epoch with the dense teacher."""
    file = cache / f"{setting.name}-seed{seed}-half-latency-{setting.epochs}.pt2"
    if not file.exists():
        with console.status(f"{setting.name}: prune to 50 % of the latency"):
            module = half_latency(dense, data.images[:CALIBRATION], seed)
        save_module(module, data.images[:2].clone(), file)
    pruned = capture(file).module
    config = TrainConfig(epochs=1, lr=0.03, distill=0.7, seed=seed + 1)
    batches = Batches(data.take(setting.recover_images), 128, seed=seed + 1)
    title, checkpoint = f"{setting.name}: recover", file.with_suffix(".pt")
    train(pruned, batches, config, checkpoint, title, teacher=dense)
    return pruned


def fashion_rows(
    setting: Setting, data: Split, cache: Path, seed: int, emulate: int = 0
) -> list[Row]:
    """A network for Fashion-MNIST, dense and pruned."""
    dense = train_dense(setting, data, cache, seed)
    pruned = prune_half(setting, dense, data, cache, seed)
    test = fashion_mnist.load("t10k").take(setting.test_images)
    batches = Batches(data.take(setting.tune_images), 64, seed=2)
    calibration = data.images[:CALIBRATION]
    subjects = [
        Subject(setting.name, name, net, dense, calibration, test, batches, len(batches))
        for name, net in ((DENSE, dense), (HALF, pruned))
    ]
    return rows_of(subjects, cache, f"seed{seed}-{setting.epochs}", emulate)


def face_rows(cache: Path, seed: int, emulate: int = 0) -> list[Row]:
    """MTCNN's R-Net on scikit-image's 100 faces and 100 others.

    Nothing is trained, and no label is used but to count: every second image serves to learn ranges
    and to reconstruct the pruned network. The test is of all, those not seen before first.
    """
    from skimage.data import lfw_subset

    grey = torch.from_numpy(lfw_subset()).float().unsqueeze(1)
    images = nn.functional.interpolate(grey.repeat(1, 3, 1, 1), (24, 24), mode="bilinear")
    images = (255.0 * images - 127.5) / 128.0
    labels = (torch.arange(len(images)) < len(images) // 2).long()  # faces come first
    seen, order = images[::2], torch.arange(len(images)).view(-1, 2).flip(1).t().reshape(-1)
    test = Split(images[order], labels[order])
    dense = models.rnet().eval()
    file = cache / f"rnet-seed{seed}-half-latency.pt2"
    if not file.exists():
        with console.status("rnet: prune to 50 % of the latency"):
            save_module(half_latency(dense, seen, seed), seen[:2].clone(), file)
    subjects = [
        Subject("rnet", name, net, dense, seen, test, lambda _: [], 0, output=1)
        for name, net in ((DENSE, dense), (HALF, capture(file).module))
    ]
    return rows_of(subjects, cache, f"seed{seed}", emulate)


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
                f"bit for bit the reference's, {b.accuracy:.2f} % right ({r.lost_to_dense:.2f} "
                f"points below the float dense network), {b.latency_ms:.2f} ms (model)"
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
