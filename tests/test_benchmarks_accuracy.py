"""The accuracy benchmark: one latency for all, what peers kept, rows that resume, honest means."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks import accuracy, accuracy_run, accuracy_subject, common, readme
from benchmarks.accuracy_fit import Candidate, Timed, fit
from benchmarks.accuracy_networks import FULL, Network, scaled
from benchmarks.accuracy_peers import ISOMORPHIC, ISOMORPHIC_NORM, NORM, TAYLOR, prune
from benchmarks.accuracy_run import Bench, Job, check_device
from benchmarks.accuracy_subject import Place, Subject, with_gradients
from benchmarks.accuracy_summary import summarise, verdicts
from benchmarks.accuracy_systems import OURS, RANDOM, SYSTEMS, WIDTH, ours, recovered, share_of
from benchmarks.accuracy_teacher import Remembered
from benchmarks.accuracy_train import accuracy as accuracy_of
from benchmarks.accuracy_train import train
from examples.fashion_mnist import Batches, SmallResNet
from hwprune.bench import Pair
from hwprune.capture import capture
from hwprune.errors import BudgetError, HwpruneError, TargetError
from hwprune.recover import TrainConfig
from hwprune.turns import OVER, UNDER
from tests.pictures import pictures

IMAGE = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))


class Wide(nn.Module):
    """One hidden layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class Flat(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).mean((2, 3)))


def wide(width: int) -> Candidate:
    """A candidate whose program is never run: only its parameters are looked at."""
    return Candidate(SimpleNamespace(module=Wide(width)), None, width)  # type: ignore[arg-type]


def pair(ratio: float) -> Pair:
    return Pair(100.0, 100.0 * ratio, ratio)


@pytest.mark.parametrize("network", FULL, ids=lambda n: n.name)
def test_networks_are_seeded_and_scale(network):
    dense = network.build(1)
    assert dense(IMAGE).shape == (1, 10)
    again = network.build(1).state_dict()
    assert all(torch.equal(t, again[name]) for name, t in dense.state_dict().items())
    assert any(not torch.equal(t, again[name]) for name, t in network.build(2).state_dict().items())
    sizes = [sum(p.numel() for p in network.build(1, f).parameters()) for f in (1.0, 0.5, 0.25)]
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2]
    assert network.build(1, 0.25)(IMAGE).shape == (1, 10)


def test_scaled_widths_stay_whole_steps():
    assert scaled((16, 32, 64), 0.6) == (8, 20, 40)
    assert scaled((16,), 0.01) == (4,)


def test_fitting_ends_at_the_first_network_near_the_budget():
    widths = []

    def time_it(program):
        widths.append(program.module.head.weight.shape[1])
        return pair(widths[-1] / 64)

    found = fit(lambda amount: wide(max(1, round(64 * amount**2))), time_it, 0.5)
    assert UNDER <= found.pair.ratio / 0.5 <= OVER
    assert found.candidate.program.module.head.weight.shape[1] == widths[-1] == 32
    assert len(widths) == len(set(widths))


def test_fitting_over_a_gap_takes_the_slowest_that_is_within():
    """Rounding leaves 0.6 and 0.4 of the latency: asked for half, a network may not exceed it."""
    timed = []

    def time_it(program):
        timed.append({48: 0.6, 16: 0.4}[program.module.head.weight.shape[1]])
        return pair(timed[-1])

    found = fit(lambda amount: wide(48 if amount > 0.3 else 16), time_it, 0.5)
    assert found.pair.ratio == 0.4
    assert sorted(timed) == [0.4, 0.6]  # each shape once
    with pytest.raises(BudgetError, match=r"20 % of the dense latency asked, 40 % is the smallest"):
        fit(lambda amount: wide(48 if amount > 0.1 else 16), time_it, 0.2)


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("resnet20", NORM),
        ("vgg", TAYLOR),
        ("mobilenet", ISOMORPHIC),
        ("vit", TAYLOR),
        ("mobilenet", ISOMORPHIC_NORM),
    ],
)
def test_what_torch_pruning_kept_is_found(name, system):
    """The dense tensors at the kept indices are the pruned ones, element by element."""
    pytest.importorskip("torch_pruning")
    (network,) = (n for n in FULL if n.name == name)
    dense = _distinct(network.build(0))
    gradients = {n: torch.rand_like(p) for n, p in dense.named_parameters()}
    before = {n: t.clone() for n, t in dense.state_dict().items()}
    pruned, kept = prune(with_gradients(dense, gradients), IMAGE, system, 0.4, 4)
    sizes = [0, 0]
    for name, tensor in pruned.state_dict().items():
        expected = before[name]
        for dim, index in kept.get(name, {}).items():
            expected = expected.index_select(dim, torch.as_tensor(index))
        assert torch.equal(expected, tensor), name
        sizes = [sizes[0] + before[name].numel(), sizes[1] + tensor.numel()]
    assert sizes[1] < 0.9 * sizes[0]
    assert pruned(IMAGE).shape == (1, 10)


def _distinct(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return module


def test_a_peer_is_recovered_as_we_are():
    """Reconstruction brings what Torch-Pruning made nearer to the dense network."""
    pytest.importorskip("torch_pruning")
    subject = _subject()
    module = with_gradients(subject.network.build(0), subject.gradients)
    pruned, kept = prune(module, IMAGE, TAYLOR, 0.5, 8)
    program = capture(pruned, (IMAGE,))
    repaired = recovered(subject, Candidate(program, kept))
    assert repaired is not None
    judged = pictures(40, seed=5).images
    with torch.no_grad():
        dense, before, after = (m(judged) for m in (subject.dense, program.module, repaired.module))
    assert (after - dense).norm() < 0.8 * (before - dense).norm()
    assert recovered(subject, Candidate(program, None)) is None


def _subject() -> Subject:
    network = _tiny(1, 1)
    return Subject(network, network.build(0), pictures(80), seed=0)


def _one_block(factor: float) -> nn.Module:
    return SmallResNet(scaled((32,), factor), blocks=1)


def _tiny(epochs: int, tune_epochs: int) -> Network:
    return Network(
        "tiny", _one_block, TrainConfig(epochs=epochs, lr=0.05, distill=0.0),
        TrainConfig(epochs=tune_epochs, lr=0.02),
    )  # fmt: skip


def test_gradients_are_of_the_mean_loss():
    subject = _subject()
    found = subject.gradients
    data = subject.data
    loss = nn.functional.cross_entropy(subject.dense(data.images), data.labels)
    (expected,) = torch.autograd.grad(loss, [subject.dense.head.weight])
    torch.testing.assert_close(found["head.weight"], expected)
    assert all(p.grad is None for p in subject.dense.parameters())


def test_training_is_judged_every_epoch_and_resumes(tmp_path):
    """Two epochs at once, and two of which the second was interrupted, end alike."""
    data = pictures(256), pictures(100, seed=1)
    config = TrainConfig(epochs=2, lr=0.05, distill=0.0, seed=3)
    whole, parts = _tiny(2, 1).build(0), _tiny(2, 1).build(0)
    found = train(whole, data, config, tmp_path / "whole.pt", "whole")
    assert len(found) == 2
    assert found[-1] == accuracy_of(whole, data[1])

    draws = iter(range(3))  # two steps an epoch
    original = Batches.__call__

    def interrupted(self, epoch):
        for batch in original(self, epoch):
            if next(draws, None) is None:
                raise KeyboardInterrupt
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(parts, data, config, tmp_path / "parts.pt", "parts")
    fresh = _tiny(2, 1).build(0)
    assert train(fresh, data, config, tmp_path / "parts.pt", "parts") == found
    assert train(fresh, data, config, tmp_path / "parts.pt", "parts") == found  # nothing left to do
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], tensor)


def test_the_teacher_is_asked_once_for_all_systems(tmp_path):
    """Two students of one seed: the second learns from the file, and just as if it had asked."""
    data, config = (pictures(256), pictures(50, seed=1)), TrainConfig(epochs=2, lr=0.05, seed=3)
    calls: list[int] = []
    network = _tiny(1, 1)
    dense = network.build(5).eval()
    dense.register_forward_hook(lambda *_: calls.append(1))
    found = []
    for number in range(2):
        teacher = Remembered(dense, tmp_path / "teacher")
        student = network.build(1)
        train(student, data, config, tmp_path / f"{number}.pt", "student", teacher=teacher)
        found.append(student.state_dict())
        assert len(calls) == 4  # two epochs of two steps
    assert all(torch.equal(t, found[1][name]) for name, t in found[0].items())
    assert sorted(p.name for p in (tmp_path / "teacher").iterdir()) == ["epoch0.pt", "epoch1.pt"]


def test_an_interrupted_epoch_of_the_teacher_is_asked_again(tmp_path):
    teacher = Remembered(nn.Linear(4, 10), tmp_path)
    batches = [(torch.randn(2, 4), torch.zeros(2)) for _ in range(3)]
    first = [teacher(x) for x, _ in teacher.follow(0, batches[:2], 3)]
    assert not any(tmp_path.iterdir())
    second = [teacher(x) for x, _ in teacher.follow(0, batches, 3)]
    again = Remembered(nn.Linear(4, 10), tmp_path)  # other weights: the file answers
    third = [again(x) for x, _ in again.follow(0, batches, 3)]
    torch.testing.assert_close(first, second[:2])
    torch.testing.assert_close(second, third)


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(pictures(128), pictures(50, seed=1), 32, tmp_path / "cache")


def _narrowed(calls: list[str]):
    """A system that needs no compiler: half the width, said to take half as long."""

    def system(subject: Subject, share: float) -> Timed:
        calls.append(subject.network.name)
        module = subject.network.build(subject.seed, share)
        return Timed(Candidate(capture(module, subject.example), None, share), pair(share))

    return system


def test_a_row_has_its_columns_and_is_made_once(bench, monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(accuracy_run, "SYSTEMS", {WIDTH: _narrowed(calls), OURS: _unreachable})
    job = Job(_tiny(1, 3), WIDTH, 0, 2.0)
    row = bench.tuned(job)
    assert set(job.key) | {
        "acc_dense", "acc_pruned", "acc_recovered", "acc_1", "acc_3", "acc_10", "acc_scratch",
        "latency_us", "macs", "params", "speedup_measured",
    } <= set(row)  # fmt: skip
    assert row["speedup_measured"] == 2.0
    assert row["acc_10"] is None  # only three epochs
    assert all(0 <= row[name] <= 100 for name in ("acc_dense", "acc_scratch", "acc_1", "acc_3"))
    assert row["acc_pruned"] is None
    assert 2 * row["macs"] < row["dense_macs"]
    assert 2 * row["params"] < row["dense_params"]
    monkeypatch.setattr(accuracy_run, "train", _only_loads(accuracy_run.train))
    again = Bench(bench.train_images, bench.test_images, 32, bench.folder)
    assert again.tuned(job) == row
    assert calls == ["tiny"]
    missing = again.tuned(Job(job.network, OURS, 0, 2.0))
    assert missing["reason"] == "latency: out of reach"
    assert "acc_10" not in missing


def _unreachable(subject: Subject, share: float) -> Timed:
    raise BudgetError("out of reach", where="latency")


def _only_loads(function):
    def loads(module, data, config, checkpoint, title, **options):
        assert checkpoint.exists(), title
        return function(module, data, config, checkpoint, title, **options)

    return loads


def test_what_failed_is_in_the_rows_and_is_tried_again(tmp_path):
    class Fails:
        def pruned(self, job):
            return {}

        def tuned(self, job):
            raise HwpruneError("the loss was nan")

    class Works(Fails):
        def tuned(self, job):
            return row("resnet20", OURS, 0, 2.0, 90.0)

    jobs, out = accuracy.plan_jobs(FULL[:1], (OURS,), (0,), (2.0,)), tmp_path / "rows.json"
    accuracy.run(Fails(), jobs, accuracy.TUNED, out)
    assert common.rows_of(out) == [jobs[0].key | {"reason": "the loss was nan"}]
    accuracy.run(Works(), jobs, accuracy.TUNED, out)
    assert common.rows_of(out) == [row("resnet20", OURS, 0, 2.0, 90.0)]


def test_torch_pruning_failing_is_said(monkeypatch):
    torch_pruning = pytest.importorskip("torch_pruning")
    monkeypatch.setattr(torch_pruning.pruner.BasePruner, "step", lambda self: 1 / 0)
    with pytest.raises(HwpruneError, match=r"norm: Torch-Pruning failed: ZeroDivisionError"):
        prune(Flat(), IMAGE, NORM, 0.5, 1)


def test_rows_that_the_file_has_are_not_made_again(tmp_path, monkeypatch):
    made: list[str] = []

    class Fake:
        def dense(self, network, seed):
            made.append("dense")

        def pruned(self, job):
            return {}

        def tuned(self, job):
            made.append(job.system)
            return row(job.network.name, job.system, job.seed, job.speedup, 90.0)

    jobs = accuracy.plan_jobs(FULL[:1], (OURS, WIDTH), (0,), (2.0,))
    out = tmp_path / "rows.json"
    accuracy.run(Fake(), jobs[:1], accuracy.TUNED, out)
    rows = accuracy.run(Fake(), jobs, accuracy.TUNED, out)
    assert made == [OURS, WIDTH]
    assert [r["system"] for r in rows] == [OURS, WIDTH]
    document = json.loads(out.read_text())
    assert document["rows"] == rows
    assert document["verdicts"][0]["model"] == FULL[0].name
    assert accuracy.run(Fake(), jobs, accuracy.DENSE, tmp_path / "none.json") == []
    assert made[2:] == ["dense", "dense"]
    assert not (tmp_path / "none.json").exists()


def test_what_is_only_pruned_is_written_and_goes_on(tmp_path):
    made: list[str] = []

    class Fake:
        def pruned(self, job):
            made.append("pruned")
            return {"acc_pruned": 40.0, "acc_dense": 90.0}

        def tuned(self, job):
            made.append("tuned")
            return row(job.network.name, job.system, job.seed, job.speedup, 90.0)

    jobs, out = accuracy.plan_jobs(FULL[:1], (OURS,), (0,), (2.0,)), tmp_path / "rows.json"
    for until in (accuracy.PRUNED, accuracy.PRUNED, accuracy.TUNED, accuracy.PRUNED):
        accuracy.run(Fake(), jobs, until, out)
    assert made == ["pruned", "tuned"]
    assert [r["acc_10"] for r in common.rows_of(out)] == [90.0]


def row(model: str, system: str, seed: int, speedup: float, acc_10: float, **given) -> dict:
    accuracies = dict.fromkeys(("acc_pruned", "acc_recovered", "acc_1", "acc_3"), acc_10 - 1)
    sizes = {"latency_us": 10.0, "macs": 2_000_000, "params": 30_000, "speedup_measured": speedup}
    key = {"model": model, "system": system, "seed": seed, "speedup": speedup}
    return key | accuracies | sizes | {"acc_dense": 92.0, "acc_10": acc_10} | given


ROWS = [
    row("m", OURS, 0, 2.0, 91.0), row("m", OURS, 1, 2.0, 92.0), row("m", OURS, 2, 2.0, 93.0),
    row("m", NORM, 0, 2.0, 90.0), row("m", NORM, 1, 2.0, 91.0), row("m", NORM, 2, 2.0, 92.0),
    row("m", WIDTH, 0, 2.0, 92.5, acc_pruned=None, acc_recovered=None),
    {"model": "m", "system": TAYLOR, "seed": 0, "speedup": 2.0, "reason": "cannot be met"},
]  # fmt: skip


def test_means_and_deviations_over_seeds():
    found = summarise(ROWS)
    ours = found["m", 2.0, OURS].values["acc_10"]
    assert ours is not None
    assert (ours.mean, ours.deviation) == (92.0, 1.0)
    assert found["m", 2.0, WIDTH].mean("acc_pruned") is None
    assert found["m", 2.0, TAYLOR].seeds == 0
    assert found["m", 2.0, TAYLOR].reasons == ("cannot be met",)
    partly = summarise([*ROWS, row("m", WIDTH, 1, 2.0, 90.0) | {"acc_10": None}])
    assert partly["m", 2.0, WIDTH].mean("acc_10") is None  # not a mean over fewer seeds


def test_verdicts_say_what_was_lost_and_won():
    (verdict,) = verdicts(summarise(ROWS))
    assert verdict["lost"] == 0.0
    assert verdict["ahead"] == -0.5  # of the scaled network
    assert verdict["ahead_of_peers"] == 1.0
    assert verdict["deviation"] == 1.0
    assert verdict["ahead_without_labels"] == {"acc_pruned": 1.0, "acc_recovered": 1.0}
    assert verdicts(summarise(ROWS[3:])) == []


def test_the_tables_show_every_system(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(common, "console", Console(file=shown, width=220))
    accuracy.show(ROWS)
    text = shown.getvalue()
    assert "2.00x" in text
    assert f"m, {TAYLOR}, 2x: cannot be met" in text
    lines = readme.TABLES["accuracy"]({"rows": ROWS})
    assert len(lines) == 2 + 1
    heads, cells = ([c.strip() for c in lines[i].split("|")[1:-1]] for i in (0, 2))
    shown_of = dict(zip(heads, cells, strict=True))
    assert "(92.00 ± 1.00)" in shown_of[OURS]
    assert shown_of[WIDTH] == "- (92.50)"  # one seed has no deviation, scratch no recovery
    assert shown_of[TAYLOR] == "out of reach"
    (_, _, refused) = readme.TABLES["accuracy"]({"rows": ROWS[-1:]})
    assert refused == "| m | 2x | - | out of reach |"  # nothing says what the dense network does


def test_the_command_line_says_what_is_run():
    jobs = accuracy.jobs_of(accuracy.options_of([]))
    assert len(jobs) == len(FULL) * len(SYSTEMS) * 3 * 3
    assert len({tuple(job.key.values()) for job in jobs}) == len(jobs)
    chosen = ["--model", "vit", "--system", RANDOM, "--seed", "7", "--speedup", "3"]
    (job,) = accuracy.jobs_of(accuracy.options_of(chosen))
    assert job.key == {"model": "vit", "system": RANDOM, "seed": 7, "speedup": 3.0}
    quick = accuracy.jobs_of(accuracy.options_of(["--quick"]))
    assert {job.network.name for job in quick} == {"tiny"}
    assert {job.system for job in quick} <= set(SYSTEMS)


@pytest.mark.parametrize("speedup", ["1", "0", "-2", "nan"])
def test_a_speedup_that_is_none_is_refused(speedup):
    with pytest.raises(BudgetError, match="is none"):
        accuracy.jobs_of(accuracy.options_of(["--speedup", speedup]))
    assert share_of(4.0) == 0.25


def test_a_device_that_is_not_there_is_refused():
    assert check_device("cpu") == "cpu"
    with pytest.raises(HwpruneError, match="cannot train on 'nowhere'"):
        check_device("nowhere")


def test_latencies_of_a_gpu_are_those_of_the_gpu_that_is_here(monkeypatch):
    """Of so many images, in its type; where it is not here nothing is predicted in its place."""
    place = Place("nvidia-h200", "float16", 100)
    monkeypatch.setattr("hwprune.bench.has_gpu", lambda target: False)
    with pytest.raises(TargetError, match="is not here: its latencies would be predicted"):
        place.checked()
    with pytest.raises(TargetError, match="0 images at once"):
        Place(batch=0).checked()
    monkeypatch.setattr("hwprune.bench.has_gpu", lambda target: True)
    assert place.checked() == place
    subject = replace(_subject(), place=place)
    assert subject.example[0].shape == (100, 1, 28, 28)  # of 80 pictures
    assert (subject.target.kind, subject.target.dtype) == ("cuda", "float16")
    calls = []
    monkeypatch.setattr(accuracy_subject, "build", lambda program, target, threads: (
        calls.append((target.name, target.dtype, len(program.inputs[0])))
        or SimpleNamespace(artifact=None)
    ))  # fmt: skip
    monkeypatch.setattr(accuracy_subject, "interleaved", lambda dense, pruned: pair(0.5))
    assert subject.time(subject.program).ratio == 0.5
    assert calls == [("nvidia-h200", "float16", 100)] * 2
    assert subject.macs(subject.program) == _subject().macs(_subject().program)


def test_pruning_is_asked_for_the_gpu_that_is_timed(monkeypatch):
    given = {}

    def prune_for(program, **options):
        given.update(options, batch=len(program.inputs[0]))
        return SimpleNamespace(program=program, kept={})

    monkeypatch.setattr("hwprune.prune", prune_for, raising=False)
    monkeypatch.setattr(Subject, "time", lambda self, program: pair(0.5))
    ours(replace(_subject(), place=Place("nvidia-h200", "float16", 4)), 0.5)
    asked = {key: given[key] for key in ("target", "dtype", "batch", "latency")}
    assert asked == {"target": "nvidia-h200", "dtype": "float16", "batch": 4, "latency": 0.5}


def test_rows_of_a_gpu_lie_apart(bench):
    job = Job(_tiny(1, 3), WIDTH, 0, 2.0)
    there = replace(bench, place=Place("nvidia-h200", "float16", 256))
    assert there._place(job).name == bench._place(job).name + "-nvidia-h200-float16-b256"
    assert there.home(job.network, 0) == bench.home(job.network, 0)  # one dense network
