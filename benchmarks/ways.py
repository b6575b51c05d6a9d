"""Ways of pruning compared: one share of the multiply-accumulates, one amount of training.

    python -m benchmarks.ways [--quick] [--out FILE] [--model NAME] [--way NAME] [--macs SHARE]
                              [--seed N] [--precision bfloat16]

Every way starts from a dense checkpoint of `benchmarks.accuracy`, trains ten epochs on
Fashion-MNIST in all with the dense network as teacher, before or after units go as it wants, and
gets the same 512 images without labels. `acc_removed` is right after the last removal and
reconstruction, `acc` at the end; `ratio` is the measured share of the dense latency (one thread,
one image). Training is kept under .cache/accuracy and resumed from there; rows that FILE has
already are not made again.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import hwprune
from benchmarks import common
from benchmarks.accuracy import CACHE, Amount
from benchmarks.accuracy_networks import FULL, QUICK, Network
from benchmarks.accuracy_run import Bench
from benchmarks.accuracy_subject import Subject
from benchmarks.accuracy_train import BATCH, accuracy
from examples import fashion_mnist
from examples.fashion_mnist import Batches
from hwprune.errors import HwpruneError
from hwprune.recover import Callback
from hwprune.recover.config import BFLOAT16, FLOAT32
from hwprune.result import PruneResult

SHARES = (0.25,)
QUICK_AMOUNT = Amount(4_096, 1_000, 64)  # an epoch has as many steps as a growing penalty needs
Row = dict[str, Any]


@dataclass(frozen=True)
class Course:
    """A dense network, what it trains on and how long, and the share that is to be left."""

    bench: Bench
    subject: Subject
    share: float

    @property
    def home(self) -> Path:
        """Where training is kept."""
        return self.bench.home(self.subject.network, self.subject.seed)

    @property
    def epochs(self) -> int:
        """Of training, in all."""
        return self.subject.network.tune.epochs

    @property
    def half(self) -> int:
        """Epochs of the first part, where there are two."""
        return max(1, self.epochs // 2)

    @property
    def budget(self) -> Row:
        """The budget and the seed, as every way of pruning takes them."""
        return {"macs": f"{100 * self.share:g}%", "seed": self.subject.seed}

    @property
    def images(self) -> Tensor:
        """Without labels."""
        return self.subject.data.images

    def batches(self) -> Batches:
        """The training batches, the same for every way."""
        return Batches(self.bench.train_images, BATCH, seed=self.subject.seed + 1)

    def judge(self, module: nn.Module) -> float:
        """Per cent right."""
        return accuracy(module, self.bench.test_images)

    def train(self, module: nn.Module, epochs: int, name: str, *told: Callback) -> float:
        """Train in place; per cent right at the end."""
        network, seed = self.subject.network, self.subject.seed
        kept = f"way-{name.replace(', ', '-').replace(' ', '-')}-{self.share:g}"
        title = f"{network.name}, {name}"
        return self.bench.tune(network, module, seed, kept, title, epochs, told)[-1]


Way = Callable[[Course], tuple[PruneResult, float | None, float]]


def at_once(course: Course, importance: str = "auto") -> tuple[PruneResult, float, float]:
    """Prune, reconstruct, train."""
    result = hwprune.prune(
        course.subject.program, importance=importance, calibrate=course.images, **course.budget
    )
    before = course.judge(result.module)
    return result, before, course.train(result.module, course.epochs, f"at once, {importance}")


def in_steps(course: Course, steps: int = 2) -> tuple[PruneResult, None, float]:
    """Prune to a part of the way, reconstruct, train; and again."""
    tune, batches = course.subject.network.tune, course.batches()
    epochs = max(1, course.epochs // steps)
    result = hwprune.prune_iteratively(
        course.subject.program,
        steps=steps,
        recover=replace(tune, epochs=epochs, precision=course.bench.precision),
        loader=batches,
        steps_per_epoch=len(batches),
        checkpoint=course.home / f"way-{steps}-steps-{course.share:g}",
        calibrate=course.images,
        **course.budget,
    )
    return result, None, course.judge(result.module)


def while_training(
    course: Course, name: str, make: Callable[..., hwprune.SoftPruner | hwprune.GrowingRegularizer]
) -> tuple[PruneResult, float, float]:
    """Half of the epochs with a pruner, which then removes; reconstruct, train for the rest."""
    module = copy.deepcopy(course.subject.dense)
    pruner = make(module, course.subject.example, **course.budget)
    course.train(module, course.half, f"{name}, before", pruner)
    result = pruner.finish(recover="auto", calibrate=course.images)
    before = course.judge(result.module)
    rest = max(1, course.epochs - course.half)
    return result, before, course.train(result.module, rest, f"{name}, after")


def growing(course: Course) -> tuple[PruneResult, float, float]:
    """A penalty that grows over half of the epochs."""
    steps = course.half * len(course.batches())
    make = partial(hwprune.GrowingRegularizer, steps=steps)
    return while_training(course, "growing", make)


WAYS: Mapping[str, Way] = {
    "at once": at_once,
    "at once, l2": partial(at_once, importance="l2"),
    "two steps": in_steps,
    "soft": lambda course: while_training(course, "soft", hwprune.SoftPruner),
    "growing": growing,
}


def row(bench: Bench, network: Network, wanted: Row) -> Row:
    """What a way reaches."""
    subject, dense = bench.dense(network, wanted["seed"])
    course, way = Course(bench, subject, wanted["macs_asked"]), wanted["way"]
    result, removed, reached = WAYS[way](course)
    pair = course.subject.time(result.program)
    counts = result.report["pruned"]
    return {
        "acc_dense": dense,
        "acc_removed": removed,
        "acc": reached,
        "epochs": course.epochs,
        "macs": counts["macs"],
        "params": counts["params"],
        "ratio": round(pair.ratio, 4),
        "latency_us": round(pair.pruned_us, 3),
        "latency_source": "device",
        "precision": course.bench.precision,
    }


def run(bench: Bench, planned: Sequence[Row], out: Path | None) -> list[Row]:
    """The file's rows and those that it lacks."""
    networks = {network.name: network for network in (*FULL, *QUICK)}
    return common.fill(
        out, planned, lambda wanted: row(bench, networks[wanted["model"]], wanted), _title
    )


def _title(row: Mapping[str, Any]) -> str:
    return f"{row['model']}, {row['way']}, {row['macs_asked']:.0%}"


def show(rows: Sequence[Row]) -> None:
    """Print the rows, the best last accuracy first; what failed last, and why."""
    measured = sorted((r for r in rows if "reason" not in r), key=lambda r: -r["acc"])
    common.table(
        "Fashion-MNIST, ten epochs in all: per cent right",
        ("model", "way", "MACs asked", "dense", "removed", "at the end", "latency"),
        [
            [
                r["model"], r["way"], f"{100 * r['macs_asked']:g} %", f"{r['acc_dense']:.2f}",
                "-" if r["acc_removed"] is None else f"{r['acc_removed']:.2f}",
                f"{r['acc']:.2f}", f"{100 * r['ratio']:.0f} %",
            ]
            for r in measured
        ],
        text=2,
    )  # fmt: skip
    common.show_reasons(rows, _title)


def main() -> None:
    parser = common.parser(__doc__, "one tiny network, few images, under a minute")
    names = [network.name for network in FULL]
    parser.add_argument("--model", action="append", choices=names, help="repeatable")
    parser.add_argument("--way", action="append", choices=[*WAYS], help="repeatable")
    parser.add_argument("--macs", action="append", type=float, help="share; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=(FLOAT32, BFLOAT16), default=FLOAT32,
                        help="that trains")  # fmt: skip
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # torch's own
    amount = QUICK_AMOUNT if options.quick else Amount()
    models = options.model or [n.name for n in (QUICK if options.quick else FULL)]
    wanted = [
        {"model": model, "way": way, "seed": options.seed, "macs_asked": share}
        for share in options.macs or SHARES
        for model in models
        for way in options.way or WAYS
    ]
    try:
        data = fashion_mnist.load("train").take(amount.train)
        test = fashion_mnist.load("t10k").take(amount.test)
        bench = Bench(data, test, amount.calibrate, CACHE, precision=options.precision)
        show(run(bench, wanted, options.out))
    except (HwpruneError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
