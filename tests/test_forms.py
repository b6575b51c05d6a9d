"""Units with a choice: whole groups or the same channels of each, of convolutions and norms."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from graph_helpers import random_plan
from torch import Tensor, nn

import hwprune
from hwprune.capture import capture
from hwprune.couple import couple
from hwprune.coupling import Coupling, Site
from hwprune.errors import HwpruneError, LoweringError
from hwprune.forms import KNOWN, Forms
from hwprune.lower.spec import TensorSpec, Workload
from hwprune.program import Program
from hwprune.reshape import reshape_workload
from hwprune.rewrite import rewrite
from hwprune.verify import Certificate, verify


class Grouped(nn.Module):
    def __init__(self, groups: int, width: int = 24) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, width, 3, padding=1)
        self.b = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.c = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)).relu())


class Normed(nn.Module):
    """Group norms along a stream with a residual block, one of them without parameters."""

    def __init__(self, groups: int, width: int = 24, affine: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.first = nn.GroupNorm(groups, width)
        self.mid = nn.Conv2d(width, width, 3, padding=1)
        self.inner = nn.GroupNorm(groups, width, affine=affine)
        self.back = nn.Conv2d(width, width, 1)
        self.last = nn.GroupNorm(groups, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.back(self.inner(self.mid(self.first(x).relu())).sigmoid())
        return self.head(self.last(x).relu().mean((2, 3)))


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def pruned(
    model: nn.Module, keep: float = 0.5, **forms: str
) -> tuple[Coupling, Program, Certificate]:
    program = capture(model.eval(), (X,))
    coupling = couple(program, **forms)
    plan = random_plan(program, coupling, keep)
    smaller = rewrite(program, coupling, plan)
    certificate = verify(program, coupling, plan, smaller)
    certificate.check()
    return coupling, smaller, certificate


@pytest.mark.parametrize("groups", [2, 12])
def test_grouped_convolutions_as_asked(groups):
    each = 24 // groups
    coupling, smaller, _ = pruned(Grouped(groups), grouped="groups")
    assert [g.width for g in coupling.groups] == [groups]
    conv = next(n for n in smaller.module.graph.nodes if n.name == "conv2d_1")
    assert conv.args[6] == groups // 2
    assert smaller.module.get_parameter("b.weight").shape[1] == each
    coupling, smaller, _ = pruned(Grouped(groups), grouped="offsets")
    assert [g.width for g in coupling.groups] == [each, each]  # what it reads, what it gives
    conv = next(n for n in smaller.module.graph.nodes if n.name == "conv2d_1")
    assert conv.args[6] == groups
    assert smaller.module.get_parameter("b.weight").shape[1] == each // 2
    automatic, _, _ = pruned(Grouped(groups))
    wanted = [12, 12] if groups == 2 else [12]
    assert [g.width for g in automatic.groups] == wanted


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", [4, 6])
def test_whole_norm_groups(groups, affine):
    coupling, smaller, certificate = pruned(Normed(groups, affine=affine), group_norm="groups")
    assert [g.width for g in coupling.groups] == [groups, groups]
    assert not any(g.through_norm_statistics for g in coupling.groups)
    assert "normalised" not in certificate.reference  # the silenced original, as it is
    norms = [n for n in smaller.module.graph.nodes if "group_norm" in str(n.target)]
    assert [n.args[1] for n in norms] == [groups // 2] * 3
    assert smaller.module.get_parameter("first.weight").shape == (12,)
    assert coupling.group("stem").index[Site("first.weight", 0)].shape == (groups, 24 // groups)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", [1, 4, 6])
def test_the_same_channels_of_every_norm_group(groups, affine):
    coupling, smaller, certificate = pruned(Normed(groups, affine=affine), group_norm="evenly")
    assert [g.width for g in coupling.groups] == [24 // groups] * 2
    assert all(g.through_norm_statistics for g in coupling.groups)
    assert "normalised over the kept channels" in certificate.reference
    norms = [n for n in smaller.module.graph.nodes if "group_norm" in str(n.target)]
    assert [n.args[1] for n in norms] == [groups] * 3
    assert smaller.module(torch.cat([X, X])).shape == (4, 4)


@pytest.mark.parametrize(
    ("groups", "units", "through"), [(1, 24, True), (2, 12, True), (8, 8, False)]
)
def test_norms_leave_the_most_units_by_themselves(groups, units, through):
    coupling, _, _ = pruned(Normed(groups))
    assert [g.width for g in coupling.groups] == [units, units]
    assert all(g.through_norm_statistics == through for g in coupling.groups)


def test_norms_of_one_dimension_and_of_single_channels():
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(3, 12), nn.GroupNorm(3, 12), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.norm(self.a(x)))

    for form, width in (("groups", 3), ("evenly", 4)):
        program = capture(Line(), (torch.randn(2, 3),))
        coupling = couple(program, group_norm=form)
        assert [g.width for g in coupling.groups] == [width]
        plan = random_plan(program, coupling)
        verify(program, coupling, plan, rewrite(program, coupling, plan)).check()
    coupling, _, _ = pruned(Normed(24))
    assert [g.width for g in coupling.groups] == [24, 24]
    assert not any(g.through_norm_statistics for g in coupling.groups)


@pytest.mark.parametrize(("asked", "weighed", "found"), [
    ({}, True, True),
    ({}, False, False),
    ({"branches": None, "attention": "both"}, True, True),
    ({"branches": False}, True, False),
    ({"branches": True}, False, True),
])  # fmt: skip
def test_branches_may_go_where_it_is_measured_what_they_are_worth(asked, weighed, found):
    forms = Forms.asked({**asked, "latency": "50%"}, weighed)
    assert forms == Forms(attention=asked.get("attention", "heads"), branches=found)


@pytest.mark.parametrize(("options", "found"), [
    ({}, False),
    ({"calibrate": 32}, True),
    ({"calibrate": 32, "normalize": "mean"}, False),
    ({"calibrate": 32, "branches": False}, False),
])  # fmt: skip
@pytest.mark.parametrize("steps", [None, 2])
def test_plans_record_whether_branches_could_go(options, found, steps):
    from small_net import small_net

    given = dict(options)
    if "calibrate" in given:
        torch.manual_seed(0)
        given["calibrate"] = torch.randn(given["calibrate"], 3, 32, 32)
    x = torch.zeros(1, 3, 32, 32)
    prune = hwprune.prune if steps is None else partial(hwprune.prune_iteratively, steps=steps)
    result = prune(small_net(), (x,), macs="80%", **given)
    assert {plan.forms.branches for plan in result.plan.stages()} == {found}


def test_a_search_records_its_forms(tmp_path):
    torch.manual_seed(0)
    model = Normed(4, width=32)
    result = hwprune.prune(model, (X,), params="45%", group_norm="groups", grouped="offsets")
    assert result.plan.forms == Forms(group_norm="groups", grouped="offsets")
    result.plan.save(tmp_path / "plan.json")
    again = hwprune.prune(model, (X,), plan=tmp_path / "plan.json")
    assert torch.equal(again.module(X), result.module(X))
    raw = json.loads(result.plan.to_json())
    assert (raw["group_norm"], raw["grouped"], raw["branches"]) == ("groups", "offsets", False)
    torch.testing.assert_close(result.apply_to(model)(X), result.module(X))
    assert min(model.first.num_groups, model.inner.num_groups) < 4
    assert model.inner.num_channels == 8 * model.inner.num_groups


@pytest.mark.parametrize("name", KNOWN)
def test_unknown_forms_are_refused(name):
    with pytest.raises(HwpruneError, match=f"{name}: unknown units 'any'") as error:
        hwprune.prune(Normed(2), (X,), macs="50%", **{name: "any"})
    assert str(KNOWN[name][-1]).lower() in error.value.hint


def test_the_kernels_of_norms_at_other_widths():
    x = TensorSpec((1, 24, 4, 4))
    args = '{"args": [{"input": 0}, 8, {"param": 0}, {"param": 1}, 1e-05, true], "kwargs": {}}'
    attrs = (("args", args), ("target", "aten.group_norm.default"))
    work = Workload("aten", (x,), x, (TensorSpec((24,)), TensorSpec((24,))), attrs)
    for channels, groups in ((24, 8), (8, 8), (15, 5), (3, 1)):
        shape = (1, channels, 4, 4)
        smaller = reshape_workload(work, [shape], shape, [(channels,), (channels,)])
        assert json.loads(smaller.attr("args"))["args"][1] == groups
    with pytest.raises(LoweringError, match="no norm groups of 3"):
        reshape_workload(work, [(1, 10, 4, 4)], (1, 10, 4, 4), [(10,), (10,)])


@pytest.mark.slow
def test_pruned_norms_compile():
    torch.manual_seed(0)
    for form in ("groups", "evenly"):
        result = hwprune.prune(Normed(4, width=32), (X[:1],), macs="50%", group_norm=form)
        artifact = hwprune.compile(result.program)
        wanted = result.module(X[:1]).detach()
        torch.testing.assert_close(torch.from_numpy(artifact(X[:1].numpy())), wanted)


def test_the_command_line_takes_them():
    from typer.testing import CliRunner

    from hwprune.look_commands import app

    words = ["inspect", "tests.small_net:small_net", "--input", "1,3,32,32", "--json"]
    plain = json.loads(CliRunner().invoke(app, words).stdout)
    assert [b["name"] for b in plain["branches"]] == ["branch:left.0"]
    found = json.loads(CliRunner().invoke(app, [*words, "--no-branches"]).stdout)
    assert found["branches"] == []
    options = ["--grouped", "any"], ["--group-norm", "any"], ["--attention", "both"]
    for wrong in options:
        error = CliRunner().invoke(app, [*words, *wrong]).exception
        assert isinstance(error, HwpruneError)
        assert f"unknown units '{wrong[1]}'" in str(error)
