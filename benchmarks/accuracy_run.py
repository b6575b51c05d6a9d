"""One row of the accuracy benchmark: train, prune, time, recover, fine-tune; all of it cached.

In: a `Job`. Out: a row. Everything lies under one folder: the dense checkpoint, for every system
and speed-up the pruned network and what was measured of it, and the fine-tuning of every network:
systems that arrive at the same one share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.accuracy_fit import Timed
from benchmarks.accuracy_networks import Network
from benchmarks.accuracy_subject import HOST, Place, Subject, parameters
from benchmarks.accuracy_systems import SYSTEMS, recovered, share_of
from benchmarks.accuracy_teacher import Remembered
from benchmarks.accuracy_train import accuracy, train
from benchmarks.common import console
from benchmarks.fashion_mnist import save_module
from examples.fashion_mnist import Split
from hwprune.atomic import write_text
from hwprune.capture import capture
from hwprune.errors import BudgetError, HwpruneError
from hwprune.recover import Callback
from hwprune.recover.config import FLOAT32

MILESTONES = (1, 3, 10)  # epochs of fine-tuning after which a row has an accuracy
FACTS, PRUNED, RECOVERED, SCRATCH, TEACHER = (
    "facts.json", "pruned.pt2", "recovered.pt2", "scratch.pt", "teacher",
)  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A network pruned by a system to a speed-up, from the dense checkpoint of a seed."""

    network: Network
    system: str
    seed: int
    speedup: float

    @property
    def key(self) -> Row:
        """What identifies its row."""
        name, system = self.network.name, self.system
        return {"model": name, "system": system, "seed": self.seed, "speedup": self.speedup}

    @property
    def title(self) -> str:
        return f"{self.network.name} {self.system} {self.speedup:g}x seed {self.seed}"


@dataclass
class Bench:
    """Images, a folder for what is kept, what trains in which type, and what is timed where.

    Subjects are made once.
    """

    train_images: Split
    test_images: Split
    calibrate: int
    folder: Path
    device: str = "cpu"
    precision: str = FLOAT32
    place: Place = HOST
    subjects: dict[tuple[str, int], tuple[Subject, float]] = field(default_factory=dict)

    def dense(self, network: Network, seed: int) -> tuple[Subject, float]:
        """The trained network and its accuracy."""
        key = network.name, seed
        if key not in self.subjects:
            self.subjects.clear()  # one at a time: compiled networks and scores take memory
            module = network.build(seed)
            found = self._train(network, module, seed, self.home(network, seed) / "dense.pt")
            images = self.train_images.take(self.calibrate)
            self.subjects[key] = Subject(network, module, images, seed, self.place), found[-1]
        return self.subjects[key]

    def pruned(self, job: Job) -> Row:
        """What is known of the pruned network before fine-tuning.

        Where the latency cannot be reached, the reason alone; other errors are raised.
        """
        home = self._place(job)
        facts = home / FACTS
        if not facts.exists():
            subject, dense = self.dense(job.network, job.seed)
            with console.status(f"{job.title}: prune and time"):
                try:
                    timed = SYSTEMS[job.system](subject, share_of(job.speedup))
                    found = self._keep(subject, timed, home) | {"acc_dense": dense}
                except BudgetError as error:
                    found = {"reason": str(error)}
            home.mkdir(parents=True, exist_ok=True)
            write_text(facts, json.dumps(found, allow_nan=False))
        return dict(json.loads(facts.read_text()))

    def tuned(self, job: Job) -> Row:
        """The whole row."""
        facts = self.pruned(job)
        if "reason" in facts:
            return job.key | facts
        home, network = self._place(job), job.network
        scratch: Mapping[str, float] = {}
        if (home / RECOVERED).exists():
            module: nn.Module = capture(home / RECOVERED).module
        else:
            module = capture(home / PRUNED).module
            found = self._train(network, module, job.seed, home / SCRATCH, f"{job.title}, scratch")
            scratch = {"acc_scratch": found[-1]}
        by_epoch = self.tune(network, module, job.seed, f"tuned-{digest(module)}", job.title)
        reached = {f"acc_{n}": dict(enumerate(by_epoch, 1)).get(n) for n in MILESTONES}
        return job.key | facts | scratch | reached

    def tune(
        self,
        network: Network,
        module: nn.Module,
        seed: int,
        name: str,
        title: str,
        epochs: int | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> list[float]:
        """Fine-tune in place, the dense network teaching; accuracies by epoch.

        `name` is that of the checkpoint; `epochs` are the network's own where None.
        """
        subject, _ = self.dense(network, seed)
        config = replace(network.tune, seed=seed + 1, precision=self.precision)
        config = replace(config, epochs=epochs or config.epochs)
        home = self.home(network, seed)
        return train(
            module, self.data, config, home / f"{name}-e{config.epochs}.pt", title,
            device=self.device, teacher=Remembered(subject.dense, home / TEACHER),
            callbacks=callbacks,
        )  # fmt: skip

    @property
    def data(self) -> tuple[Split, Split]:
        """What trains, and what judges."""
        return self.train_images, self.test_images

    def _train(
        self, network: Network, module: nn.Module, seed: int, checkpoint: Path, title: str = ""
    ) -> list[float]:
        config = replace(network.train, seed=seed, precision=self.precision)
        title = title or f"{network.name} dense seed {seed}"
        return train(module, self.data, config, checkpoint, title, device=self.device)

    def _keep(self, subject: Subject, timed: Timed, home: Path) -> Row:
        """Write the pruned and the recovered network; what they reach, take and hold."""
        candidate, pair = timed.candidate, timed.pair
        example = self.train_images.images[:2].clone()
        repaired = recovered(subject, candidate)
        after = before = None
        save_module(candidate.program.module, example, home / PRUNED)
        if repaired is not None:
            save_module(repaired.module, example, home / RECOVERED)
            before = accuracy(candidate.program.module, self.test_images)
            after = accuracy(repaired.module, self.test_images)
        return {
            "acc_pruned": before,
            "acc_recovered": after,
            "latency_us": round(pair.pruned_us, 3),
            "dense_us": round(pair.dense_us, 3),
            "speedup_measured": round(1.0 / pair.ratio, 4),
            "macs": subject.macs(candidate.program),
            "params": parameters(candidate.program),
            "dense_macs": subject.macs(subject.program),
            "dense_params": parameters(subject.program),
            "setting": candidate.setting,
            "precision": self.precision,
            **({} if self.place == HOST else asdict(self.place)),
        }

    def home(self, network: Network, seed: int) -> Path:
        """The folder of a network and seed."""
        train_epochs, images = network.train.epochs, len(self.train_images)
        name = f"{network.name}-e{train_epochs}-n{images}-{self.precision}-seed{seed}"
        return self.folder / name

    def _place(self, job: Job) -> Path:
        name = f"{job.system}-x{job.speedup:g}-c{self.calibrate}-e{job.network.tune.epochs}"
        name += self.place.suffix
        return self.home(job.network, job.seed) / name


def digest(module: nn.Module) -> str:
    """Names networks of the same tensors alike, others differently."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def check_device(device: str) -> str:
    """The device's name. Raises HwpruneError where torch has none of it."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise HwpruneError(
            f"cannot train on {device!r}: {reason}", where="device", hint="cpu, or cuda"
        ) from error
    return device
