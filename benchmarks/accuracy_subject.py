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
from hwprune.bench import Pair, interleaved
from hwprune.budget import MACS
from hwprune.build import Build, build
from hwprune.capture import Program, capture
from hwprune.importance import Importance
from hwprune.prepare import Prepared, measure_kernels, open_table, prepare
from hwprune.price import Cost, latency_costs
from hwprune.score import Scores
from hwprune.target import Target, load_target

BATCH = 64


@dataclass(frozen=True)
class Subject:
    """A trained network, and training images for what systems want to look at.

    Only systems whose criterion needs gradients of the loss use the labels.
    """

    network: Network
    dense: nn.Module
    data: Split
    seed: int

    @property
    def example(self) -> tuple[Tensor, ...]:
        """One image."""
        return (self.data.images[:1],)

    @cached_property
    def target(self) -> Target:
        return load_target("host")

    @cached_property
    def program(self) -> Program:
        return capture(self.dense, self.example, name=self.network.name)

    @cached_property
    def prepared(self) -> Prepared:
        return prepare(self.program, self.target, threads=1)

    @cached_property
    def compiled(self) -> Build:
        """The dense network for this machine, one thread."""
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
            return latency_costs(prepared.sites, prepared.candidates, table, threads=1)

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
        return round(prepare(program, self.target, threads=1).dense(MACS))


def with_gradients(module: nn.Module, gradients: dict[str, Tensor]) -> nn.Module:
    """The module, its parameters given these gradients."""
    for name, parameter in module.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    return module


def parameters(program: Program) -> int:
    """How many numbers are trained."""
    with torch.no_grad():
        return sum(p.numel() for p in program.module.parameters())
