"""How alike EfficientNet-Lite0 stays without labels, at a measured share of its latency.

    python -m benchmarks.lite0_latency [--quick] [--out FILE] [--system NAME] [--budget SHARE]

Every system meets the same latency through the same compiler (one photo, one thread), and gets the
same label-free reconstruction on 48 photos. Rows say how often the top-1 class is the dense
network's on 96 photos that nothing has seen, and how many of the labelled ones among them are
right. Rows that FILE has already are not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from benchmarks import label_free
from benchmarks.accuracy_fit import Timed
from benchmarks.accuracy_networks import Network
from benchmarks.accuracy_peers import ISOMORPHIC_NORM, NORM, torch_pruning
from benchmarks.accuracy_subject import Subject
from benchmarks.accuracy_systems import OURS, allocated, ours, recovered
from benchmarks.label_free import Row
from benchmarks.lite0_accuracy import Amount
from benchmarks.lite0_accuracy import Bench as Judge
from examples import models, photos
from examples.fashion_mnist import Split
from hwprune.recover import TrainConfig

UNIFORM = "uniform"
BUDGETS = (0.5, 0.6, 0.7, 0.8, 0.9)
SYSTEMS: Mapping[str, Callable[[Subject, float], Timed]] = {
    OURS: ours,
    ISOMORPHIC_NORM: lambda subject, share: torch_pruning(subject, ISOMORPHIC_NORM, share),
    NORM: lambda subject, share: torch_pruning(subject, NORM, share),
    UNIFORM: partial(allocated, method=UNIFORM),
}
GIVEN = 64  # photos that a system gets, of which every fourth only judges


class Bench:
    """The dense network, photos for every purpose, and how a row is made."""

    def __init__(self, given: int, judged: int) -> None:
        self.judge = Judge(Amount(judge=judged))
        network = Network(
            "efficientnet_lite0",
            lambda _: models.efficientnet_lite0(),
            TrainConfig(),
            TrainConfig(),
            head="_fc",
        )
        images = photos.calibration(given)
        unlabelled = Split(images, torch.zeros(len(images), dtype=torch.int64))
        self.subject = Subject(network, self.judge.module, unlabelled, seed=0)

    def row(self, system: str, share: float) -> Row:
        """Prune, time, recover and judge once."""
        timed = SYSTEMS[system](self.subject, share)
        after = recovered(self.subject, timed.candidate)
        assert after is not None
        return {
            **label_free.timed_facts(self.subject, timed),
            "pruned_top1_agreement": self.judge.judge(timed.candidate.program)["top1_agreement"],
            **self.judge.judge(after),
            "judged_on": len(self.judge.judged),
            "labelled": sum(label is not None for label in self.judge.labels),
            "given": len(self.subject.data),
        }


def show(rows: Sequence[Row]) -> None:
    """Print the rows by budget, the most alike first; what failed last, and why."""
    label_free.show(
        "EfficientNet-Lite0, label-free: agreement with the dense network on held-out photos",
        ("top-1 agreement, pruned", "recovered", "cosine", "labelled right"),
        rows,
        lambda row: [
            f"{100 * row['pruned_top1_agreement']:.1f} %",
            f"{100 * row['top1_agreement']:.1f} %",
            f"{row['cosine']:.3f}",
            f"{row['top1_labelled']} / {row['labelled']}",
        ],
        by="top1_agreement",
    )


def main() -> None:
    def start(quick: bool) -> Callable[[str, float], Row]:
        return (Bench(16, 16) if quick else Bench(GIVEN, Amount.judge)).row

    quick = {"system": UNIFORM, "budget": 0.8}
    show(label_free.run(__doc__, [*SYSTEMS], BUDGETS, quick, start))


if __name__ == "__main__":
    main()
