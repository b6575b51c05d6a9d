import io

import pytest
import torch
from rich.console import Console

from benchmarks import common, lite0_latency
from benchmarks.accuracy_networks import Network
from benchmarks.accuracy_peers import ISOMORPHIC_NORM, LABEL_FREE, NORM, _maker
from benchmarks.accuracy_subject import Subject
from benchmarks.accuracy_systems import OURS
from benchmarks.lite0_accuracy import BUDGETS, METHODS, ONE_BUDGET, UNIFORM, plan_rows, show
from benchmarks.lite0_peers import multiply_accumulates, within_macs
from examples.fashion_mnist import SmallResNet, Split
from hwprune.errors import BudgetError
from hwprune.recover import TrainConfig
from hwprune.score import CRITERIA

IMAGE = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_every_criterion_has_a_row_and_some_have_one_at_every_budget() -> None:
    planned = plan_rows(None, None)
    assert len(set(planned)) == len(planned)
    assert {m for m, b in planned if b == ONE_BUDGET} == {*METHODS, *CRITERIA}
    assert set(LABEL_FREE) < set(METHODS)
    assert {(m, b) for m in METHODS for b in BUDGETS} <= set(planned)
    assert plan_rows([UNIFORM], None) == [(UNIFORM, ONE_BUDGET)]
    assert {b for _, b in plan_rows(None, [0.7])} == {0.7}


def test_the_most_alike_row_of_a_budget_comes_first(monkeypatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(common, "console", Console(file=shown, width=200))
    row = {"budget": 0.6, "macs_share": 0.6, "cosine": 0.5, "labelled": 9, "top1_labelled": 3}
    show(
        [
            row | {"method": "worse", "top1_agreement": 0.1},
            row | {"method": "other", "top1_agreement": 0.5, "budget": 0.5},
            row | {"method": "better", "top1_agreement": 0.2},
        ]
    )
    text = shown.getvalue()
    assert text.index("better") < text.index("worse") < text.index("other")


@pytest.mark.parametrize("system", LABEL_FREE)
def test_torch_pruning_meets_a_budget_of_multiply_accumulates(system) -> None:
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    dense = SmallResNet((8, 16), blocks=1, stride=1).eval()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    smaller, kept = within_macs(dense, "head", IMAGE, system, 0.5)
    share = multiply_accumulates(smaller, IMAGE) / multiply_accumulates(dense, IMAGE)
    assert 0.4 < share <= 0.5
    assert smaller(IMAGE).shape == dense(IMAGE).shape
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    rows = torch.as_tensor(kept["stem.0.weight"][0])
    assert torch.equal(smaller.stem[0].weight, dense.stem[0].weight[rows])


def test_what_torch_pruning_cannot_reach_is_said() -> None:
    pytest.importorskip("torch_pruning")
    dense = SmallResNet((8, 16), blocks=1, stride=1).eval()
    with pytest.raises(BudgetError, match="finds no network"):
        within_macs(dense, "head", IMAGE, ISOMORPHIC_NORM, 1e-6)


def test_multiply_accumulates_are_those_of_convolutions_and_linear_layers() -> None:
    layers = torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 26 * 26, 10)
    wanted = 4 * 9 * 26 * 26 + 4 * 26 * 26 * 10
    assert multiply_accumulates(torch.nn.Sequential(*layers), IMAGE) == wanted


def test_latency_rows_are_shown_by_budget(monkeypatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(common, "console", Console(file=shown, width=220))
    row = {
        "budget": 0.5, "ratio": 0.49, "latency_us": 2e3, "macs": 1e8, "cosine": 0.5,
        "pruned_top1_agreement": 0.01, "top1_labelled": 3, "labelled": 9,
    }  # fmt: skip
    lite0_latency.show(
        [
            row | {"system": NORM, "top1_agreement": 0.1},
            row | {"system": OURS, "top1_agreement": 0.5},
            {"system": ISOMORPHIC_NORM, "budget": 0.5, "reason": "out of reach"},
        ]
    )
    text = shown.getvalue()
    assert text.index(OURS) < text.index(NORM) < text.index("out of reach")


class Renamed(SmallResNet):
    """Its last layer has another name."""

    def __init__(self, _: float) -> None:
        super().__init__((8, 16), blocks=1, stride=1)
        self.last, self.head = self.head, torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(super().forward(x))


def test_the_last_layer_keeps_its_outputs_whatever_its_name() -> None:
    pytest.importorskip("torch_pruning")

    config = TrainConfig()
    network = Network("renamed", Renamed, config, config, head="last")
    data = Split(IMAGE, torch.zeros(1, dtype=torch.int64))
    subject = Subject(network, network.build(0).eval(), data, seed=0)
    made = _maker(subject, NORM, 1)(0.5)
    assert made.program.module(IMAGE).shape == (1, 10)
    assert made.kept is not None
    assert len(made.kept["stem.0.weight"][0]) < 8
