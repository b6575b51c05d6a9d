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

from torch import nn

import hwprune
from benchmarks import common
from benchmarks.accuracy import CACHE, Amount
from benchmarks.accuracy_networks import FULL, QUICK
from benchmarks.accuracy_run import Bench
from benchmarks.accuracy_subject import Subject
from benchmarks.accuracy_teacher import Remembered
from benchmarks.accuracy_train import BATCH, accuracy, train
from examples import fashion_mnist
from examples.fashion_mnist import Batches, Split
from hwprune.errors import HwpruneError
from hwprune.recover import Callback
from hwprune.recover.config import BFLOAT16, FLOAT32
from hwprune.result import PruneResult

SHARES = (0.25,)
QUICK_AMOUNT = Amount(4_096, 1_000, 64)  # an epoch has as many steps as a growing penalty needs
KEY = ("model", "way", "seed", "macs_asked")
Row = dict[str, Any]


@dataclass(frozen=True)
class Course:
    """A dense network, its images, how long everything trains, and where that is kept."""

    subject: Subject
    data: tuple[Split, Split]
    share: float
    precision: str
    home: Path

    @property
    def epochs(self) -> int:
        """Of training, in all."""
        return self.subject.network.tune.epochs

    @property
    def half(self) -> int:
        """Epochs of the first part, where there are two."""
        return max(1, self.epochs // 2)

    @property
    def asked(self) -> Row:
        """The budget, the images, and the seed."""
        subject = self.subject
        macs = f"{100 * self.share:g}%"
        return {"macs": macs, "calibrate": subject.data.images, "seed": subject.seed}

    def batches(self) -> Batches:
        """The training batches, the same for every way."""
        return Batches(self.data[0], BATCH, seed=self.subject.seed + 1)

    def train(self, module: nn.Module, epochs: int, name: str, *told: Callback) -> float:
        """Train in place; per cent right at the end."""
        seed = self.subject.seed + 1
        config = replace(
            self.subject.network.tune, epochs=epochs, seed=seed, precision=self.precision
        )
        teacher = Remembered(self.subject.dense, self.home / "teacher")
        title = f"{self.subject.network.name}, {name}"
        kept = self.home / f"way-{name.replace(', ', '-').replace(' ', '-')}-{self.share:g}.pt"
        return train(module, self.data, config, kept, title, teacher=teacher, callbacks=told)[-1]


Way = Callable[[Course], tuple[PruneResult, float | None, float]]


def at_once(course: Course, importance: str = "auto") -> tuple[PruneResult, float, float]:
    """Prune, reconstruct, train."""
    result = hwprune.prune(course.subject.program, importance=importance, **course.asked)
    before = accuracy(result.module, course.data[1])
    return result, before, course.train(result.module, course.epochs, f"at once, {importance}")


def in_steps(course: Course, steps: int = 2) -> tuple[PruneResult, None, float]:
    """Prune to a part of the way, reconstruct, train; and again."""
    tune, batches = course.subject.network.tune, course.batches()
    epochs = max(1, course.epochs // steps)
    result = hwprune.prune_iteratively(
        course.subject.program,
        steps=steps,
        recover=replace(tune, epochs=epochs, precision=course.precision),
        loader=batches,
        steps_per_epoch=len(batches),
        checkpoint=course.home / f"way-{steps}-steps-{course.share:g}",
        **course.asked,
    )
    return result, None, accuracy(result.module, course.data[1])


def while_training(
    course: Course, name: str, make: Callable[..., hwprune.SoftPruner | hwprune.GrowingRegularizer]
) -> tuple[PruneResult, float, float]:
    """Half of the epochs with a pruner, which then removes; reconstruct, train for the rest."""
    module, images = copy.deepcopy(course.subject.dense), course.asked["calibrate"]
    pruner = make(module, course.subject.example, macs=course.asked["macs"], seed=0)
    course.train(module, course.half, f"{name}, before", pruner)
    result = pruner.finish(recover="auto", calibrate=images)
    before = accuracy(result.module, course.data[1])
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


def row(course: Course, way: str, dense: float) -> Row:
    """What a way reaches."""
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
        "precision": course.precision,
    }


def run(bench: Bench, wanted: Sequence[Row], out: Path | None) -> list[Row]:
    """The file's rows and those that it lacks, written as they come; what failed says why."""
    rows = [r for r in common.rows_of(out) if "reason" not in r]
    known = [{name: r[name] for name in KEY} for r in rows]
    networks = {network.name: network for network in (*FULL, *QUICK)}
    for key in wanted:
        if key in known:
            continue
        common.console.print(f"{key['model']}, {key['way']}, {key['macs_asked']:.0%}")
        try:
            course, dense = _course(bench, networks[key["model"]], key)
            rows.append(key | row(course, key["way"], dense))
        except HwpruneError as error:
            rows.append(key | {"reason": str(error)})
        common.finish(out, rows)
    return rows


def _course(bench: Bench, network: Any, key: Row) -> tuple[Course, float]:
    subject, dense = bench.dense(network, key["seed"])
    data = bench.train_images, bench.test_images
    home = bench.home(network, key["seed"])
    return Course(subject, data, key["macs_asked"], bench.precision, home), dense


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
    for r in rows:
        if "reason" in r:
            line = f"{r['model']}, {r['way']}: {r['reason']}"
            common.console.print(line, style="yellow", markup=False)


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
