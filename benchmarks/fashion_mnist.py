"""The full story on labelled data: train, prune to half the host's latency, recover, compile, test.

    python -m benchmarks.fashion_mnist [--quick] [--out FILE] [--seed N] [--threads N]

Accuracies are of the *compiled artifacts* on Fashion-MNIST's test images, speed-ups are of
interleaved runs. Everything slow is kept under .cache/fashion_mnist and resumed from there;
--fresh starts again.
"""

from __future__ import annotations

import json
import shutil
import statistics
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import hwprune
from benchmarks import common
from benchmarks.common import console
from examples import fashion_mnist
from examples.fashion_mnist import Batches, Split
from examples.seeded import seeded
from hwprune.capture import capture
from hwprune.recover import TrainConfig, TrainResult, finetune, reconstruct, training_bar

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "fashion_mnist"


@dataclass(frozen=True)
class Setting:
    """How one network is trained and recovered."""

    name: str
    factory: Callable[[int], nn.Module]
    epochs: int
    recover_epochs: int
    train_images: int = 60_000
    test_images: int = 10_000


FULL = (
    Setting("resnet", fashion_mnist.resnet, 8, 4),
    Setting("mobilenet", fashion_mnist.mobilenet, 6, 4),
)


def _quick_resnet(seed: int) -> nn.Module:
    return seeded(lambda: fashion_mnist.SmallResNet((32, 64), blocks=1), seed)


QUICK = (Setting("quick-resnet", _quick_resnet, 2, 1, 6_000, 1_000),)


@dataclass(frozen=True)
class Row:
    """The result for one network; accuracies in per cent, latencies of one image."""

    model: str
    threads: int
    dense_accuracy: float
    pruned_accuracy: float
    reconstructed_accuracy: float
    recovered_accuracy: float
    accuracy_lost: float
    dense_us: float
    pruned_us: float
    speedup: float
    speedup_p10: float
    speedup_p90: float
    dense_params: int
    pruned_params: int
    predicted_share: float | None
    test_images: int


def train(
    module: nn.Module,
    batches: Batches,
    config: TrainConfig,
    checkpoint: Path,
    title: str,
    teacher: nn.Module | None = None,
) -> TrainResult:
    with training_bar(title, config.epochs, len(batches), console) as report:
        return finetune(
            module,
            batches,
            len(batches),
            config,
            teacher=teacher,
            checkpoint=checkpoint,
            progress=report,
        )


def accuracy(run: Callable[[np.ndarray], np.ndarray], split: Split) -> float:
    """Per cent of the test images that are classified right, one image at a time."""
    images = split.images.numpy()
    right = sum(
        int(run(images[i : i + 1]).argmax()) == int(split.labels[i]) for i in range(len(split))
    )
    return 100.0 * right / len(split)


def interleaved_us(dense: Any, pruned: Any, rounds: int, repeats: int = 50) -> list[list[float]]:
    """Median microseconds per round, of both artifacts in turn."""
    medians: list[list[float]] = [[], []]
    for _ in range(rounds):
        for series, artifact in zip(medians, (dense, pruned), strict=True):
            series.append(statistics.median(artifact.latencies_us(repeats)))
    return medians


def story(setting: Setting, *, seed: int, threads: int, rounds: int) -> Row:
    """Train, prune, recover, compile and test one network."""
    name = f"{setting.name}-seed{seed}"
    data = fashion_mnist.load("train").take(setting.train_images)
    test = fashion_mnist.load("t10k").take(setting.test_images)
    compile_one = partial(hwprune.compile, target="host", threads=threads)
    example = (test.images[:1],)

    dense: Any = setting.factory(seed)
    dense.to(memory_format=torch.channels_last)  # trains faster
    config = TrainConfig(epochs=setting.epochs, lr=0.1, distill=0.0, seed=seed)
    checkpoint = CACHE / f"{name}-dense-{setting.epochs}.pt"
    batches = Batches(data, 128, seed=seed)
    train(dense, batches, config, checkpoint, f"{setting.name}: train")
    dense.to(memory_format=torch.contiguous_format)

    pruned_file = CACHE / f"{name}-pruned-{setting.epochs}-t{threads}.pt2"
    pruned, corrected, share = prune_once(setting, dense, data, pruned_file, seed, threads)
    with console.status(f"{setting.name}: compile and test"):
        dense_artifact = compile_one(dense, example)
        dense_accuracy = accuracy(dense_artifact, test)
        pruned_accuracy = accuracy(compile_one(pruned, example), test)
        corrected_accuracy = accuracy(compile_one(corrected, example), test)
    console.print(
        f"{setting.name}: dense {dense_accuracy:.2f} %, pruned {pruned_accuracy:.2f} %, "
        f"reconstructed {corrected_accuracy:.2f} %"
    )

    config = TrainConfig(epochs=setting.recover_epochs, lr=0.03, distill=0.7, seed=seed + 1)
    checkpoint = pruned_file.with_name(f"{pruned_file.stem}-recover-{setting.recover_epochs}.pt")
    batches = Batches(data, 128, seed=seed + 1)
    result = train(
        corrected, batches, config, checkpoint, f"{setting.name}: recover", teacher=dense
    )
    if result.stopped:
        console.print(f"[yellow]{setting.name}: recovery stopped early: {result.stopped}")
    artifact = compile_one(corrected, example)
    recovered_accuracy = accuracy(artifact, test)

    dense_us, pruned_us = interleaved_us(dense_artifact, artifact, rounds)
    ratios = [d / p for d, p in zip(dense_us, pruned_us, strict=True)]
    return Row(
        model=setting.name,
        threads=threads,
        dense_accuracy=dense_accuracy,
        pruned_accuracy=pruned_accuracy,
        reconstructed_accuracy=corrected_accuracy,
        recovered_accuracy=recovered_accuracy,
        accuracy_lost=round(dense_accuracy - recovered_accuracy, 3),
        dense_us=statistics.median(dense_us),
        pruned_us=statistics.median(pruned_us),
        speedup=statistics.median(ratios),
        speedup_p10=float(np.quantile(ratios, 0.1)),
        speedup_p90=float(np.quantile(ratios, 0.9)),
        dense_params=sum(p.numel() for p in dense.parameters()),
        pruned_params=sum(p.numel() for p in corrected.parameters()),
        predicted_share=share,
        test_images=len(test),
    )


def prune_once(
    setting: Setting, dense: nn.Module, data: Split, file: Path, seed: int, threads: int
) -> tuple[nn.Module, nn.Module, float | None]:
    """The pruned network before and after reconstruction, and its predicted share of the latency.

    Kept on disk: measured latencies, and with them the plan, differ from run to run.
    """
    fixed = file.with_name(f"{file.stem}-reconstructed.pt2")
    notes = file.with_suffix(".json")
    if not (file.exists() and fixed.exists() and notes.exists()):
        example = (data.images[:1],)
        with console.status(f"{setting.name}: prune to 50 % of the host's latency"):
            result = hwprune.prune(
                dense,
                example,
                target="host",
                latency="50%",
                threads=threads,
                seed=seed,
                recover="none",
            )
            images = data.images[:1024].split(128)
            corrected = reconstruct(
                result.dense, result.program, result.kept, images, seed=seed
            ).program
        report = result.report
        share = report["pruned"]["predicted_us"] / report["dense"]["predicted_us"]
        for module, path in ((result.module, file), (corrected.module, fixed)):
            save_module(module, data.images[:2].clone(), path)
        notes.write_text(json.dumps({"share": share, "kept": result.plan.widths()}))
    share = json.loads(notes.read_text())["share"]
    return capture(file).module, capture(fixed).module, share


def save_module(module: nn.Module, images: torch.Tensor, path: Path) -> None:
    """As an exported program with a dynamic batch."""
    batch = torch.export.Dim("batch")
    exported = torch.export.export(module.eval(), (images,), dynamic_shapes=({0: batch},))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(exported, path)


def show(rows: list[Row]) -> None:
    common.table(
        "Fashion-MNIST, compiled artifacts, batch 1",
        (
            "model",
            *("dense %", "pruned %", "fitted %", "tuned %", "lost"),
            *("dense µs", "pruned µs", "speed-up"),
        ),
        [_cells(row) for row in rows],
    )


def _cells(row: Row) -> list[str]:
    accuracies = (
        row.dense_accuracy,
        row.pruned_accuracy,
        row.reconstructed_accuracy,
        row.recovered_accuracy,
        row.accuracy_lost,
    )
    times = (f"{row.dense_us:.0f}", f"{row.pruned_us:.0f}", f"{row.speedup:.2f}x")
    return [row.model, *(f"{value:.2f}" for value in accuracies), *times]


def main() -> None:
    parser = common.parser(__doc__, "one tiny network, under a minute")
    parser.add_argument("--fresh", action="store_true", help="forget checkpoints and plans")
    parser.add_argument("--model", action="append", help="only this network (repeatable)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of the compiled networks")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # torch's own
    if options.fresh and CACHE.exists():
        shutil.rmtree(CACHE)
    settings = [
        s
        for s in (QUICK if options.quick else FULL)
        if options.model is None or s.name in options.model
    ]
    rounds = 7 if options.quick else 31
    run = partial(story, seed=options.seed, threads=options.threads, rounds=rounds)
    rows = [run(setting) for setting in settings]
    show(rows)
    common.finish(options.out, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
