"""Pruning in steps: schedules, one plan of the original, certificates, and going on."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import BudgetError, HwpruneError
from hwprune.program import Program
from hwprune.recover import TrainConfig
from hwprune.rewrite import rewrite
from hwprune.verify import verify
from hwprune.ways import iterative
from hwprune.ways.schedule import share_left
from tests.command_line import refused
from tests.small_net import small_net

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
STEPS = dict(steps=2, schedule="exponential", macs="40%", params="60%")


def test_schedules() -> None:
    left = {s: [share_left(0.4, 4, k, s) for k in range(1, 5)] for s in
            ("linear", "exponential", "cubic")}  # fmt: skip
    assert left["linear"] == pytest.approx([0.85, 0.7, 0.55, 0.4])
    assert left["exponential"] == pytest.approx([0.4**0.25, 0.4**0.5, 0.4**0.75, 0.4])
    assert left["cubic"] == pytest.approx([0.4 + 0.6 * (1 - k / 4) ** 3 for k in range(1, 5)])


def jitter(program: Program) -> Program:
    """A recovery that changes every weight, and with them the next scores."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in program.module.parameters():
            tensor *= 0.5 + torch.rand(tensor.shape, generator=generator)
    return program


@pytest.fixture(scope="module")
def stepped():
    return hwprune.prune_iteratively(small_net(), (X,), recover=jitter, **STEPS)


def test_one_plan_of_the_original(stepped) -> None:
    report = stepped.report
    assert report["pruned"]["macs"] <= 0.4 * report["dense"]["macs"]
    assert report["pruned"]["params"] <= 0.6 * report["dense"]["params"]
    assert [row["step"] for row in report["steps"]] == [1, 2]
    assert all(row["certificate"]["passed"] for row in report["steps"])
    macs = [report["dense"]["macs"], *(row["macs"] for row in report["steps"])]
    assert all(after < before for before, after in pairwise(macs))
    again = rewrite(stepped.dense, stepped.coupling, stepped.plan)
    assert verify(stepped.dense, stepped.coupling, stepped.plan, again).passed
    shapes = {n: t.shape for n, t in again.module.state_dict().items()}
    assert shapes == {n: t.shape for n, t in stepped.module.state_dict().items()}
    original = dict(small_net().named_parameters())
    for name, dims in stepped.kept.items():
        for dim, index in dims.items():
            if name in original:
                assert len(index) == shapes[name][dim]
                assert index.max() < original[name].shape[dim]


def test_the_users_module_takes_it(stepped) -> None:
    model = stepped.apply_to(small_net())
    assert torch.allclose(model(X), stepped.module(X), atol=1e-5)


def test_scores_are_taken_anew(stepped) -> None:
    at_once = hwprune.prune(small_net(), (X,), macs="40%", params="60%")
    assert stepped.plan.kept != at_once.plan.kept


def test_goes_on_where_it_was_stopped(stepped, tmp_path) -> None:
    calls = []

    def stops(program: Program) -> Program:
        calls.append(program)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return jitter(program)

    with pytest.raises(KeyboardInterrupt):
        hwprune.prune_iteratively(small_net(), (X,), recover=stops, checkpoint=tmp_path, **STEPS)
    assert (tmp_path / "step-2" / "plan.json").exists()
    assert not (tmp_path / "step-2" / "weights.safetensors").exists()
    again = hwprune.prune_iteratively(
        small_net(), (X,), recover=stops, checkpoint=tmp_path, **STEPS
    )
    assert len(calls) == 3  # the first step was not recovered again
    assert again.plan.kept == stepped.plan.kept
    for name, tensor in stepped.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor), name
    with pytest.raises(HwpruneError, match=r"settings.json: was made with steps 2, now it is 3"):
        hwprune.prune_iteratively(
            small_net(), (X,), recover=stops, checkpoint=tmp_path, **{**STEPS, "steps": 3}
        )


def test_training_recovers_every_step() -> None:
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(32) % 10
    model = small_net()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    result = hwprune.prune_iteratively(
        model, (X,), steps=2, macs="60%", recover=TrainConfig(epochs=1, lr=0.01),
        loader=[(images, labels)],
    )  # fmt: skip
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    rows = result.kept["stem.0.weight"].get(0, np.arange(32))
    untrained = before["stem.0.weight"][torch.from_numpy(rows)]
    assert not torch.equal(result.module.get_parameter("stem.0.weight"), untrained)


def test_training_starts_from_what_inputs_reconstruct(monkeypatch) -> None:
    images = torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    starts: list[dict[str, torch.Tensor]] = []
    real = iterative.finetune

    def spy(module, *args, **options):
        starts.append({n: t.clone() for n, t in module.state_dict().items()})
        return real(module, *args, **options)

    monkeypatch.setattr(iterative, "finetune", spy)
    asked = {"macs": "60%", "steps": 1, "calibrate": images}
    plain = hwprune.prune_iteratively(small_net(), (X,), recover="auto", **asked)
    hwprune.prune_iteratively(
        small_net(), (X,), recover=TrainConfig(epochs=1, lr=0.01),
        loader=[(images, torch.arange(48) % 10)], **asked,
    )  # fmt: skip
    for name, tensor in plain.module.state_dict().items():
        torch.testing.assert_close(starts[0][name], tensor)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"steps": 0}, HwpruneError, "at least 1"),
        ({"schedule": "quartic"}, HwpruneError, "linear, exponential, cubic"),
        ({"macs": None}, BudgetError, "no budget"),
        ({"attention": "both"}, HwpruneError, "one form"),
        ({"recover": TrainConfig()}, HwpruneError, "needs batches"),
        ({"recover": TrainConfig(), "loader": lambda _: []}, HwpruneError, "steps_per_epoch"),
        ({"recover": TrainConfig(), "loader": []}, HwpruneError, "gives no batches"),
        ({"recover": "magic"}, HwpruneError, "unknown recovery"),
        ({"importance": "magic"}, HwpruneError, "unknown importance 'magic'"),
    ],
)
def test_bad_requests(options, error, match) -> None:
    with pytest.raises(error, match=match):
        hwprune.prune_iteratively(
            nn.Linear(4, 4), (torch.zeros(1, 4),), **{"steps": 2, "macs": "50%", **options}
        )


def test_on_the_command_line(run, tmp_path) -> None:
    words = ("iterate", "tests.small_net:small_net", "--input", "1,3,16,16", "--macs", "60%")
    out = tmp_path / "out"
    done = run(*words, "--steps", 2, "--recover", "tests.test_iterative:jitter", "--json",
               "--out", out)  # fmt: skip
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert len(report["steps"]) == 2
    assert report["pruned"]["macs"] <= 0.6 * report["dense"]["macs"]
    loaded = hwprune.load_pruned(small_net, out)
    module = torch.export.load(out / "model.pt2").module()
    assert torch.allclose(loaded(X), module(X), atol=1e-5)
    refused(run(*words, "--steps", 2, "--schedule", "no", "--out", tmp_path / "no"), "linear")
