"""How alike a pruned MiniLM-L6 stays without labels, at a measured share of its latency.

    python -m benchmarks.minilm_accuracy [--quick] [--out FILE] [--system NAME] [--budget SHARE]

The pretrained sentence encoder is pruned to a share of its latency (one sentence of 32 tokens, one
thread) and recovered by the label-free reconstruction on 384 sentences. Rows say how alike its
embeddings are to the original's on 512 sentences that nothing has seen, and how many of these keep
their nearest neighbour among them. Rows that FILE has already are not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

import hwprune
from benchmarks import label_free
from benchmarks.accuracy_fit import Candidate, Timed
from benchmarks.accuracy_networks import Network
from benchmarks.accuracy_subject import Subject
from benchmarks.accuracy_systems import allocated, recovered
from benchmarks.label_free import Row
from examples import sentences
from examples.fashion_mnist import Split
from hwprune.given import recover_part
from hwprune.program import Program
from hwprune.recover import TrainConfig, fidelity

HEADS, HEAD_DIM, BOTH, UNIFORM = "hwprune", "hwprune-head-dim", "hwprune-both", "uniform"
BUDGETS = (0.75, 0.5)


@dataclass(frozen=True)
class Amount:
    """How many sentences there are for each purpose; a quarter of the first only judges."""

    calibrate: int = 512
    judge: int = 512


def ours(subject: Subject, share: float, attention: str) -> Timed:
    """hwprune with calibration sentences, within a share of the dense latency."""
    result = hwprune.prune(
        subject.program,
        latency=share,
        attention=attention,
        calibrate=subject.data.images,
        recover="none",
    )
    return Timed(Candidate(result.program, result.kept), subject.time(result.program))


SYSTEMS: Mapping[str, Callable[[Subject, float], Timed]] = {
    HEADS: partial(ours, attention="heads"),
    UNIFORM: partial(allocated, method="uniform"),
    BOTH: partial(ours, attention="both"),
    HEAD_DIM: partial(ours, attention="head_dim"),
}


class Bench:
    """The dense encoder, the sentences, and what is shared by all rows."""

    def __init__(self, amount: Amount) -> None:
        ids = sentences.calibration(amount.calibrate)
        network = Network(
            "minilm_l6", lambda _: sentences.minilm_l6(), TrainConfig(), TrainConfig()
        )
        unlabelled = Split(ids, torch.zeros(len(ids), dtype=torch.int64))
        self.subject = Subject(network, sentences.minilm_l6(), unlabelled, seed=0)
        self.judged = sentences.held_out(amount.judge)

    @cached_property
    def dense(self) -> Tensor:
        """Embeddings of the sentences to judge by, (N, 384)."""
        return self.embeddings(self.subject.program)

    def embeddings(self, program: Program) -> Tensor:
        """Of the sentences to judge by, (N, 384), of length one."""
        with torch.no_grad():
            return torch.cat([program.module(ids) for ids in self.judged.split(32)])

    def row(self, system: str, share: float) -> Row:
        """Prune, time, recover and judge once."""
        timed = SYSTEMS[system](self.subject, share)
        after = recovered(self.subject, timed.candidate)
        assert after is not None
        return {
            **label_free.timed_facts(self.subject, timed),
            "cosine_pruned": self.cosine(timed.candidate.program),
            "cosine": self.cosine(after),
            "neighbour_kept": round(neighbours_kept(self.dense, self.embeddings(after)), 5),
            **self.counts(),
        }

    def cosine(self, program: Program) -> float:
        """Mean cosine of a network's embeddings to the original's."""
        outputs = self.embeddings(program)
        places = torch.arange(len(outputs))
        found = fidelity(lambda i: self.dense[i], lambda i: outputs[i], places)
        return round(found["cosine"], 5)

    def counts(self) -> dict[str, int]:
        """How many sentences, of how many tokens at most, a row is of."""
        used, judged = len(recover_part(self.subject.data.images)), len(self.judged)
        return {"calibrated_on": used, "judged_on": judged, "tokens": sentences.TOKENS}


def neighbours_kept(before: Tensor, after: Tensor) -> float:
    """The share of rows, of length one each, whose nearest other row stays the same one."""
    nearest = [
        (rows @ rows.T).fill_diagonal_(float("-inf")).argmax(1)
        for rows in (before.double(), after.double())
    ]
    return float((nearest[0] == nearest[1]).double().mean())


def show(rows: Sequence[Row]) -> None:
    """Print the rows by budget, the most alike first; what failed last, and why."""
    label_free.show(
        "MiniLM-L6, label-free: embeddings of held-out sentences against the original's",
        ("cosine, pruned", "recovered", "neighbour"),
        rows,
        lambda row: [
            f"{row['cosine_pruned']:.3f}",
            f"{row['cosine']:.3f}",
            f"{100 * row['neighbour_kept']:.0f} %",
        ],
        by="cosine",
    )


def main() -> None:
    def start(quick: bool) -> Callable[[str, float], Row]:
        return Bench(Amount(64, 64) if quick else Amount()).row

    quick = {"system": HEADS, "budget": BUDGETS[0]}
    show(label_free.run(__doc__, [*SYSTEMS], BUDGETS, quick, start))


if __name__ == "__main__":
    main()
