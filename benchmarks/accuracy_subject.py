"""A trained network as every pruning system gets it: the same data, compiler, table and timing.

In: a module and training images. Out: what systems share, made once and when it is first needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from benchmarks.accuracy_networks import Network
from examples.fashion_mnist import Split
from hwprune.bench import Pair, interleaved, is_timed
from hwprune.budget import MACS
from hwprune.build import Build, build
from hwprune.capture import Program, capture
from hwprune.cuda_runtime import why_not_here
from hwprune.dtype import in_dtype
from hwprune.errors import TargetError
from hwprune.importance import Importance
from hwprune.prepare import Prepared, measure_kernels, open_table, prepare
from hwprune.price import Cost, latency_costs
from hwprune.request import read_target
from hwprune.score import Scores
from hwprune.target import FLOAT32, Target, load_target

BATCH = 64


@dataclass(frozen=True)
class Place:
    """Where latencies are measured: a target here, in a type, of so many images at once."""

    target: str = "host"
    dtype: str = FLOAT32
    batch: int = 1

    def checked(self) -> Place:
        """Itself. Raises HwpruneError where latencies would be predicted, or there is no image."""
        target = read_target(self.target, threads=1, dtype=self.dtype)
        if not is_timed(target, None):
            raise TargetError(
                "is not here: its latencies would be predicted",
                where=f"target {self.target!r}",
                hint=why_not_here(target.gpu.architecture) if target.gpu else "host, or a GPU",
            )
        if self.batch < 1:
            raise TargetError(f"{self.batch} images at once", where="batch", hint="at least 1")
        return self

    @property
    def suffix(self) -> str:
        """Of the names of files; empty for one image on this machine's processor."""
        return "" if self == Place() else f"-{self.target}-{self.dtype}-b{self.batch}"


HOST = Place()


@dataclass(frozen=True)
class Subject:
    """A trained network, and training images for what systems want to look at.

    Only systems whose criterion needs gradients of the loss use the labels.
    """

    network: Network
    dense: nn.Module
    data: Split
    seed: int
    place: Place = HOST

    @property
    def example(self) -> tuple[Tensor, ...]:
        """As many images as are run at once."""
        images = self.data.images
        return (images[torch.arange(self.place.batch) % len(images)],)

    @cached_property
    def target(self) -> Target:
        return in_dtype(load_target(self.place.target), self.place.dtype)

    @cached_property
    def program(self) -> Program:
        return capture(self.dense, self.example, name=self.network.name)

    @cached_property
    def prepared(self) -> Prepared:
        return prepare(self.program, self.target, threads=1)

    @cached_property
    def compiled(self) -> Build:
        """The dense network for where latencies are measured; one thread of a processor."""
        return build(self.program, self.target, threads=1)

    @cached_property
    def scores(self) -> Scores:
        """hwprune's own importance, from the images alone."""
        scorer = Importance(seed=self.seed).on(self.data.images)
        return scorer(self.program, self.prepared.coupling, lambda done, total: None)

    @cached_property
    def costs(self) -> Sequence[Cost]:
        """Of every kernel, measured alone where the table lacks it."""
        prepared = self.prepared
        with open_table(self.target) as table:
            measure_kernels(prepared, table, lambda done, total: None)
            return latency_costs(
                prepared.sites, prepared.candidates, table, threads=1, stepped=prepared.stepped
            )

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """Of the mean loss, by parameter."""
        module = self.dense.eval()
        module.zero_grad(set_to_none=True)
        batches = zip(self.data.images.split(BATCH), self.data.labels.split(BATCH), strict=True)
        for images, labels in batches:
            loss = nn.functional.cross_entropy(module(images), labels, reduction="sum")
            (loss / len(self.data)).backward()
        found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        module.zero_grad(set_to_none=True)
        return found

    def time(self, program: Program) -> Pair:
        """Latency of a network beside the dense one's, through the same compiler."""
        smaller = build(program, self.target, threads=1)
        return interleaved(self.compiled.artifact, smaller.artifact)

    def macs(self, program: Program) -> int:
        """Multiply-accumulates of one image."""
        return round(prepare(program, self.target, threads=1).dense(MACS) / len(program.inputs[0]))


def with_gradients(module: nn.Module, gradients: dict[str, Tensor]) -> nn.Module:
    """The module, its parameters given these gradients."""
    for name, parameter in module.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    return module


def parameters(program: Program) -> int:
    """How many numbers are trained."""
    with torch.no_grad():
        return sum(p.numel() for p in program.module.parameters())
