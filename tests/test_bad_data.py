"""Data and functions of users that do not fit: one message that says where it is."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import hwprune
from hwprune.errors import HwpruneError
from hwprune.recover import TrainConfig, load_images
from hwprune.ways.trail import Trail
from tests.command_line import refused

X = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
INPUTS = torch.randn(12, 64, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(12) % 5
PAIRS = [(INPUTS[:6], LABELS[:6]), (INPUTS[6:], LABELS[6:])]
WRONG = [PAIRS[0], (INPUTS[6:], LABELS[6:] + 9)]
LOSS = nn.functional.cross_entropy
GRADIENTS = {"importance": "taylor", "loss": LOSS}
SENSITIVITY = {"importance": "l2", "normalize": "sensitivity"}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)).eval()


class Failing(Dataset):
    """A data set that cannot read its sixth item, or whose worker dies there."""

    def __init__(self, dies: bool) -> None:
        self.dies = dies

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 5:
            if self.dies:
                os._exit(3)
            raise OSError("unreadable picture")
        return INPUTS[index], int(LABELS[index])


def prune(**options):
    return hwprune.prune(network(), (X,), macs="50%", **options)


def broken(where: str, words: str):
    return pytest.raises(HwpruneError, match=f"^{where}: .*{words}")


@pytest.mark.parametrize("options", [GRADIENTS, SENSITIVITY])
@pytest.mark.parametrize(
    ("batches", "where", "words"),
    [
        ([], "batches", "there are no batches"),
        (iter(()), "batches", "there are no batches"),
        (DataLoader(Failing(False), 4), "batches, batch 1", "OSError: unreadable picture"),
        ([*PAIRS, INPUTS], "batches, batch 2", "not a pair"),
        ([(torch.zeros(4, 7), LABELS[:4])], "batches, batch 0",
         r"float32 \(N, 7\), the model takes float32 \(N, 64\)"),
        ([(INPUTS.long(), LABELS)], "batches, batch 0", r"int64 \(N, 64\), the model takes"),
        ([("text", LABELS)], "batches, batch 0", "no tensors"),
    ],
)  # fmt: skip
def test_batches_that_cannot_be_read(options, batches, where, words) -> None:
    with broken(where, words):
        prune(batches=batches, **options)


def test_a_worker_that_dies_while_scores_are_taken() -> None:
    with broken("batches, batch [01]", "the loader failed: RuntimeError: .*worker"):
        prune(batches=DataLoader(Failing(True), 4, num_workers=1), **GRADIENTS)


def test_batches_that_come_once_are_read_once() -> None:
    options = {"importance": "wanda", "normalize": "sensitivity"}
    once = prune(batches=iter(PAIRS), **options)
    again = prune(batches=PAIRS, **options)
    assert once.plan.kept == again.plan.kept


def test_labels_out_of_range() -> None:
    with broken("batch 1", "the loss fails: Target 1. is out of bounds"):
        prune(batches=WRONG, **GRADIENTS)
    with broken("batch 1", "the loss fails: Target 1. is out of bounds"):
        hwprune.find_sensitivity(network(), (X,), batches=WRONG, loss=LOSS, importance="l2")
    with broken("batch 0", "the loss is nan"):
        hwprune.find_sensitivity(
            network(), (X,), batches=PAIRS, importance="l2", loss=lambda y, _: y.sum() * torch.nan
        )


@pytest.mark.parametrize(
    ("calibrate", "words"),
    [
        ([], "there are no calibration inputs"),
        (INPUTS[:0], "there are no calibration inputs"),
        (torch.zeros(3, 7), r"have shape \(3, 7\), the model takes \(N, 64\)"),
        ([INPUTS, torch.zeros(3, 7)], r"have shape \(3, 7\)"),
        (INPUTS.long(), "are torch.int64, the model takes torch.float32"),
        (PAIRS, "are tensors, not tuple.*without labels"),
        (torch.full((3, 64), torch.nan), "not finite"),
    ],
)
def test_calibration_inputs_that_do_not_fit(calibrate, words) -> None:
    with broken("calibrate", words):
        prune(calibrate=calibrate)


def test_calibration_inputs_of_another_precision_are_converted() -> None:
    assert prune(calibrate=INPUTS.double()).plan.kept == prune(calibrate=INPUTS).plan.kept


def failing(*_):
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize(
    ("recover", "words"),
    [
        (failing, "your function failed: ZeroDivisionError: by zero"),
        (lambda program: None, "your function gave NoneType, not a Program"),
        (lambda program: program.module, "your function gave a module, not a Program"),
    ],
)
def test_recoveries_that_fail(recover, words, tmp_path) -> None:
    with broken("recover", words):
        prune(recover=recover)
    checkpoint = tmp_path / "steps"
    with broken("recover", words):
        hwprune.prune_iteratively(
            network(), (X,), steps=2, macs="50%", recover=recover, checkpoint=checkpoint
        )
    assert Trail(checkpoint).plan(1) is not None  # what was found is kept
    assert not (checkpoint / "step-1" / "weights.safetensors").exists()


def test_a_loss_that_becomes_nan_ends_the_steps(tmp_path) -> None:
    options = {"steps": 2, "macs": "50%", "checkpoint": tmp_path / "steps"}
    loader = lambda epoch: [(INPUTS * (torch.nan if epoch else 1.0), LABELS)]  # noqa: E731
    with broken("pruning step 1", "the loss was nan at step 0 of epoch 1"):
        hwprune.prune_iteratively(
            network(), (X,), recover=TrainConfig(epochs=2, lr=0.01), loader=loader,
            steps_per_epoch=1, **options,
        )  # fmt: skip
    kept = torch.load(tmp_path / "steps" / "step-1" / "training.pt", weights_only=True)
    assert len(kept["losses"]) == 1
    assert all(bool(t.isfinite().all()) for t in kept["module"].values())


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("evaluate", "words"),
    [
        (failing, "your function failed: ZeroDivisionError"),
        (lambda module: None, "gave None"),
        (lambda module: torch.nan, "gave nan"),
        (lambda module: torch.zeros(2), r"gave tensor\(\[0., 0.\]\)"),
    ],
)
def test_judges_that_fail(evaluate, words, tmp_path, monkeypatch) -> None:
    found = prune()
    monkeypatch.setattr("hwprune.front_search.prune", lambda *_, **__: found)
    with broken("evaluate", words):
        hwprune.search(
            network(), (X,), out=tmp_path / "out", budgets=("60%",), evaluate=evaluate,
            recover="none",
        )  # fmt: skip


def test_arrays_of_whole_numbers(tmp_path) -> None:
    np.save(tmp_path / "0.npy", np.array([3, 30_521, 7]))
    ids = load_images(tmp_path, (1, 3), dtype=torch.int64)
    assert ids.tolist() == [[3, 30_521, 7]]
    assert ids.dtype == torch.int64
    np.save(tmp_path / "1.npy", np.array([3.0, 0.5, 7.0]))
    with pytest.raises(HwpruneError, match=r"1.npy: the array is float64, the model takes torch.i"):
        load_images(tmp_path, (1, 3), dtype=torch.int64)
    np.save(tmp_path / "1.npy", np.array(["a", "b", "c"]))
    with pytest.raises(HwpruneError, match=r"1.npy: the array holds no numbers"):
        load_images(tmp_path, (1, 3))


@pytest.mark.usefixtures("no_work")
def test_on_the_command_line(run, tmp_path) -> None:
    net, out = ("tests.test_bad_data:network", "--input", "2,64"), tmp_path / "out"
    images = tmp_path / "images"
    words = ("prune", *net, "--macs", "50%", "--calibrate", images, "--out", out)
    refused(run(*words), "no such directory of images")
    images.mkdir()
    refused(run(*words), "no images in this directory")
    np.save(images / "0.npy", np.full(64, np.nan, np.float32))
    refused(run(*words), "0.npy", "not finite")
    np.save(images / "0.npy", np.zeros(7, np.float32))
    refused(run(*words), "0.npy", "has shape (7,), the model takes (64,)")
    for command in ("iterate", "search"):
        more = ("--steps", 2, "--macs", "50%") if command == "iterate" else ("--budget", "50%")
        for option, words in (("--importance=magic", "one of auto"), ("--recover=os:sep", "")):
            again = (command, *net, *more, option, "--out", out)
            judge = ("--evaluate", "tests.test_bad_data:failing") if command == "search" else ()
            refused(run(*again, *judge), words)
    steps = ("iterate", *net, "--macs", "50%", "--out", out, "--steps")
    refused(run(*steps, 2, "--schedule", "quartic"), "linear, exponential, cubic")
    refused(run(*steps, 2, "--recover", "tests.test_bad_data:failing"), "your function failed")
    assert not out.exists()
