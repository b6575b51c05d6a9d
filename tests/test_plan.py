"""Plan: the JSON round trip, and every malformed file is one PlanError."""

import json

import pytest
import torch
from torch import nn

from hwprune.capture import capture, fingerprint
from hwprune.couple import couple
from hwprune.errors import PlanError
from hwprune.plan import Plan


def test_round_trip(tmp_path):
    plan = Plan("abc", {"conv1": (0, 2, 5), "fc": (1,)}, {"macs": 12.5})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.widths() == {"conv1": 3, "fc": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON text"),
        ("[]", "not a plan of format 1"),
        ('{"format": 1, "kept": {}}', "'fingerprint' or 'kept' is missing"),
        ('{"format": 1, "fingerprint": "a", "kept": {"g": [1, 0]}}', "g: unit indices must ascend"),
        ('{"format": 1, "fingerprint": "a", "kept": {"g": [0, 0]}}', "g: unit indices must ascend"),
        ('{"format": 1, "fingerprint": "a", "kept": {"g": [true]}}', "g: not a list of unit"),
        (
            '{"format": 1, "fingerprint": "a", "kept": {}, "predicted": {"macs": "x"}}',
            "'predicted'",
        ),
        ('{"format": 1, "fingerprint": "a", "kept": {}, "grouped": "x"}', "'grouped': unknown"),
        ('{"format": 1, "fingerprint": "a", "kept": {}, "branches": 1}', "'branches': unknown"),
        ('{"format": 1, "fingerprint": "a", "kept": {}, "then": 3}', "then: not a plan"),
        (
            '{"format": 1, "fingerprint": "a", "kept": {}, "then": {"then": {}}}',
            "more than two stages",
        ),
    ],
)
def test_malformed(tmp_path, text, message):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PlanError, match=message):
        Plan.load(tmp_path / "plan.json")


def test_unreadable_and_unwritable(tmp_path):
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.load(tmp_path / "none.json")
    with pytest.raises(PlanError, match="cannot be written"):
        Plan("a", {}).save(tmp_path / "no" / "plan.json")


def test_check_names_what_does_not_fit():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    program = capture(net, (torch.randn(1, 4),))
    coupling, print_ = couple(program), fingerprint(program)
    full = Plan.full(coupling, print_)
    full.check(coupling, print_)
    assert full.widths() == {"0": 6}
    with pytest.raises(PlanError, match="made for another model"):
        full.check(coupling, "other")
    with pytest.raises(PlanError, match=r"1: the plan and the model have different groups"):
        Plan(print_, {"0": (0,), "1": (0,)}).check(coupling, print_)
    with pytest.raises(PlanError, match="unit 6 of 6"):
        Plan(print_, {"0": (6,)}).check(coupling, print_)
    with pytest.raises(PlanError, match="at least one unit"):
        Plan(print_, {"0": ()}).check(coupling, print_)


def test_json_is_plain(tmp_path):
    Plan("a", {"g": (1,)}).save(tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())["kept"] == {"g": [1]}
