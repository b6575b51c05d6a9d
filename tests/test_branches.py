"""Residual branches: found where x + f(x) can be x, removed and certified, chosen by budgets."""

from __future__ import annotations

import copy
import itertools
import json
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import hwprune
from hwprune.allocate import allocate
from hwprune.budget import MACS, PARAMS
from hwprune.capture import capture
from hwprune.cost import Cost
from hwprune.couple import couple
from hwprune.coupling import Coupling, Extent
from hwprune.errors import BudgetError, CertificateError, PlanError
from hwprune.forms import KNOWN
from hwprune.macs import macs
from hwprune.plan import Plan
from hwprune.prepare import prepare
from hwprune.problem import Problem
from hwprune.program import Program, fingerprint
from hwprune.result import save_pruned
from hwprune.rewrite import kept_indices, rewrite
from hwprune.score import CRITERIA, score
from hwprune.target import load_target
from hwprune.verify import verify
from tests.random_networks import seeded


class Block(nn.Module):
    """A basic block as torchvision writes it: the sum and what follows are in place."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu_(self.bn1(self.conv1(x)))))
        y += x
        return F.relu_(y)


class Residual(nn.Module):
    """Two basic blocks, a projection between them that must stay, and a mobile block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.one, self.two = Block(16, 24), Block(32, 40)
        self.down, self.across = nn.Conv2d(16, 32, 3, 2, 1), nn.Conv2d(16, 32, 1, 2)
        self.mobile = nn.Sequential(
            nn.Conv2d(32, 48, 1), nn.ReLU6(), nn.Conv2d(48, 48, 3, padding=1, groups=48),
            nn.BatchNorm2d(48), nn.ReLU6(), nn.Conv2d(48, 32, 1),
        )  # fmt: skip
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.stem(x).relu())
        x = self.two((self.down(x) + self.across(x)).relu())
        x = x + self.mobile(x)
        return self.head(x.mean((2, 3)))


class Encoder(nn.Module):
    """A vision transformer's layers: norms, heads and an MLP with layer scale."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.places = nn.Parameter(torch.randn(1, 4, 24))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(24, 4, 32, batch_first=True, norm_first=True, dropout=0.0)
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


class Next(nn.Module):
    """ConvNeXt blocks: the norm inside runs over the stream's own channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 20, 2, 2), nn.Linear(20, 5)
        self.mix = nn.ModuleList(nn.Conv2d(20, 20, 3, padding=1, groups=20) for _ in range(2))
        self.norm = nn.ModuleList(nn.LayerNorm(20) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(20, 40) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(40, 20) for _ in range(2))
        self.scale = nn.ParameterList(torch.rand(20) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for mix, norm, up, down, scale in zip(
            self.mix, self.norm, self.up, self.down, self.scale, strict=True
        ):
            y = down(F.gelu(up(norm(mix(x).permute(0, 2, 3, 1))))) * scale
            x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


class Parallel(nn.Module):
    """Attention-free parallel layers: both branches read one norm, and add to the same stream."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm, self.out = nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 3)
        self.a = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 12))
        self.b = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        y = self.norm(x)
        return self.out(x + self.a(y) + self.b(y))


class Nested(nn.Module):
    """A branch within a branch, over a path down and up again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.down, self.up = nn.Conv2d(8, 12, 2, 2), nn.ConvTranspose2d(12, 8, 2, 2)
        self.inner = nn.Sequential(nn.Conv2d(12, 10, 1), nn.ReLU(), nn.Conv2d(10, 12, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(x)
        return self.head(x + self.up(y + self.inner(y)))


IMAGE = (1, 3, 8, 8)
NETS = {
    "residual": (Residual, IMAGE, ["branch:one.conv1", "branch:two.conv1", "branch:mobile.0"]),
    "encoder": (
        Encoder,
        IMAGE,
        [f"branch:layers.{i}.norm{j}" for i in (0, 1) for j in (1, 2)],
    ),
    "next": (Next, IMAGE, ["branch:mix.0", "branch:mix.1"]),
    "parallel": (Parallel, (2, 6), ["branch:a.0", "branch:b.0"]),
    "nested": (Nested, IMAGE, ["branch:inner.0", "branch:down"]),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape, _ = NETS[name]
    return make().eval(), torch.randn(shape)


def plan_of(program: Program, coupling: Coupling, gone: set[str], keep: float = 0.6) -> Plan:
    """Some units of every group at random, without the branches named and all within."""
    rng = np.random.default_rng(0)
    kept: dict[str, tuple[int, ...]] = {}
    for group in coupling.groups:
        count = max(2, round(keep * group.width))
        kept[group.name] = tuple(sorted(rng.permutation(group.width)[:count].tolist()))
    kept |= {b.name: (0,) for b in coupling.branches}
    for branch in coupling.branches:
        if branch.name in gone:
            inner = [b.name for b in coupling.branches if b.add in branch.nodes]
            kept |= dict.fromkeys([branch.name, *branch.groups, *inner], ())
    return Plan(fingerprint(program), kept, forms=coupling.forms)


@pytest.mark.parametrize("name", NETS)
def test_certified_without_any_of_them(name):
    model, x = network(name)
    program = capture(model, (x,))
    coupling = couple(program, branches=True)
    names = [b.name for b in coupling.branches]
    assert names == NETS[name][2]
    assert not couple(program).branches
    for gone in [set(names), *({n} for n in names)]:
        plan = plan_of(program, coupling, gone)
        smaller = rewrite(program, coupling, plan)
        certificate = verify(program, coupling, plan, smaller)
        certificate.check()
        assert "multiplied by zero" in certificate.reference
        left = dict(smaller.module.named_parameters())
        calls = {n.name for n in smaller.module.graph.nodes}
        for branch in coupling.branches:
            if branch.name in gone:
                assert not branch.parameters & left.keys()
                assert not (branch.nodes | {branch.add}) & calls
        assert smaller.module(torch.cat([x] * 3)).shape[0] == 3 * len(x)
        kept = kept_indices(coupling, plan, program)
        assert all(n in left or "running" in n for n in kept)


def test_a_removed_branch_is_the_model_with_its_last_layer_silent():
    model, x = network("residual")
    program = capture(model, (x,))
    coupling = couple(program, branches=True)
    full = Plan.full(coupling, fingerprint(program))
    gone = coupling.branches[0]
    kept = {**full.kept, **dict.fromkeys([gone.name, *gone.groups], ())}
    smaller = rewrite(program, coupling, Plan(full.fingerprint, kept, forms=full.forms))
    with torch.no_grad():
        model.one.bn2.weight.zero_()
        model.one.bn2.bias.zero_()
        torch.testing.assert_close(smaller.module(x), model(x))
    twin = copy.deepcopy(smaller.module).train()
    twin(torch.cat([x, 2 * x])).square().sum().backward()  # nothing is written over that it needs
    assert all(p.grad is not None for p in twin.parameters())


def test_the_certificate_fails_where_the_branch_still_adds():
    model, x = network("next")
    program = capture(model, (x,))
    coupling = couple(program, branches=True)
    plan = plan_of(program, coupling, set(), keep=1.0)
    whole = rewrite(program, coupling, plan)
    wrong = plan_of(program, coupling, {"branch:mix.1"}, keep=1.0)
    with pytest.raises(CertificateError):
        verify(program, coupling, wrong, whole).check()


def written_before(net, x):
    """The branch changes the stream itself, through a view."""
    return x + net.b(net.a(x.view(-1, 2, 4).mul_(2.0).view(-1, 8)))


def shared(net, x):
    """What is within is read elsewhere too."""
    y = net.b(net.a(x))
    return (x + y) * y.mean()


def tied(net, x):
    """The same layers twice."""
    x = x + net.b(net.a(x))
    return x + net.b(net.a(x))


def scaled(net, x):
    return torch.add(x, net.b(net.a(x)), alpha=2)


def unrelated(net, x):
    """Neither depends on the other."""
    return net.b(x) + net.a(x)


class Around(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self, self.stem(x)))


@pytest.mark.parametrize("function", [written_before, shared, tied, scaled, unrelated])
def test_what_is_no_branch_of_its_own_stays(function):
    assert not couple(capture(Around(function), (torch.randn(2, 4),)), branches=True).branches


def stream_written_later(net, x):
    y = x + net.b(net.a(x.neg()))
    z = y * 2
    return x.mul_(3.0).sigmoid() * z


def sum_written(net, x):
    y = x + net.b(net.a(x))
    y.mul_(2.0)
    return y * x.sigmoid()


def sum_in_the_stream(net, x):
    y = x * 1
    y += net.b(net.a(y.neg()))
    return y.mul_(2.0) * x.sigmoid()


@pytest.mark.parametrize("function", [stream_written_later, sum_written, sum_in_the_stream])
def test_what_is_written_in_place_is_not_mixed_up(function):
    torch.manual_seed(0)
    program = capture(Around(function), (torch.randn(2, 4),))
    coupling = couple(program, branches=True)
    (branch,) = coupling.branches
    plan = plan_of(program, coupling, {branch.name})
    verify(program, coupling, plan, rewrite(program, coupling, plan)).check()


def test_plans_say_what_becomes_of_branches(tmp_path):
    model, x = network("nested")
    program = capture(model, (x,))
    coupling = couple(program, branches=True)
    print_ = fingerprint(program)
    plan = plan_of(program, coupling, {"branch:inner.0"})
    plan.save(tmp_path / "plan.json")
    raw = json.loads((tmp_path / "plan.json").read_text())
    assert raw["branches"] is True
    assert raw["kept"]["branch:inner.0"] == []
    assert Plan.load(tmp_path / "plan.json") == plan
    plan.check(coupling, print_)
    with pytest.raises(PlanError, match="made with branches True"):
        plan.check(couple(program), print_)
    for change, match in (
        ({"inner.0": (0,)}, r"inner.0: keeps units of branch:inner.0, which goes"),
        ({"branch:down": ()}, "keeps units of branch:down"),
        ({"stem": ()}, "stem: a group must keep"),
        ({"branch:down": (1,)}, "unit 1 of 1"),
    ):
        wrong = Plan(print_, {**plan.kept, **change}, forms=plan.forms)
        with pytest.raises(PlanError, match=match):
            wrong.check(coupling, print_)


@pytest.mark.parametrize("name", ["residual", "encoder", "nested"])
def test_costs_are_those_of_the_network_without_them(name):
    model, x = network(name)
    program = capture(model, (x,))
    prepared = prepare(program, load_target("host"), 1, branches=True)
    assert prepared.dense(PARAMS) == sum(p.numel() for p in model.parameters())
    names = [b.name for b in prepared.coupling.branches]
    for count in range(len(names) + 1):
        plan = plan_of(program, prepared.coupling, set(names[:count]), keep=1.0)
        widths = plan.widths()
        smaller = rewrite(program, prepared.coupling, plan)
        wanted = sum(p.numel() for p in smaller.module.parameters())
        assert sum(c.at(widths) for c in prepared.params) == wanted
        again = prepare(smaller, load_target("host"), 1)
        assert sum(c.at(widths) for c in prepared.macs) == again.dense(MACS)
        kernels = sum(macs(s.workload(widths)) for s in prepared.sites if s.runs(widths))
        assert kernels == again.dense(MACS)


@pytest.mark.parametrize("importance", sorted(CRITERIA))
def test_a_weak_branch_is_worth_least(importance):
    model, x = network("residual")
    with torch.no_grad():
        for parameter in model.two.parameters():
            parameter.mul_(0.01)
    program = capture(model, (x,))
    coupling = couple(program, branches=True)
    batches = [((torch.randn(2, 3, 8, 8),), torch.tensor([0, 1]))]
    found = score(program, coupling, importance, batches=batches, loss=F.cross_entropy)
    worth = {b.name: found[b.name] for b in coupling.branches}
    assert all(v.shape == (1,) and np.isfinite(v).all() and v >= 0 for v in worth.values())
    if importance != "random":
        assert min(worth, key=lambda n: worth[n].item()) == "branch:two.conv1"


def problem(share: float, seed: int) -> Problem:
    """A stream, a branch with two groups, one more within it, and a concatenation inside."""
    rng = np.random.default_rng(seed)
    widths = {"stream": (4, 8), "a": (2, 4, 6), "b": (3, 6), "c": (2, 5)}
    candidates = {**widths, "outer": (0, 1), "inner": (0, 1)}
    gates = {"a": "outer", "b": "outer", "inner": "outer", "c": "inner"}
    grids = {g: np.array(w) for g, w in widths.items()}
    extents = {g: Extent(0, ((g, 1),)) for g in widths}

    def joint(a: str, b: str, gate: str) -> Cost:
        values = np.outer(grids[a], grids[b]) * rng.uniform(
            0.8, 1.2, (len(grids[a]), len(grids[b]))
        )
        return Cost(f"{a}-{b}", (extents[a], extents[b]), (grids[a], grids[b]), values, gate=gate)

    both = Extent(1, (("a", 1), ("stream", 1)))
    grid = np.arange(7, 16)
    costs = [
        joint("stream", "a", "outer"), joint("a", "b", "outer"), joint("b", "c", "inner"),
        Cost("stem", (extents["stream"],), (grids["stream"],), 2.0 * grids["stream"]),
        Cost("depthwise", (extents["stream"],), (grids["stream"],), grids["stream"], gate="outer"),
        Cost("cat", (both,), (grid,), 0.5 * grid**1.2, gate="outer"),
        Cost("norm", (), (), np.array(6.0), gate="inner"),
        Cost("rest", (), (), np.array(5.0)),
    ]  # fmt: skip
    scores = {g: rng.uniform(0, 1, max(w)) for g, w in candidates.items()}
    full = {g: max(w) for g, w in candidates.items()}
    total = sum(c.at(full) for c in costs)
    return Problem(scores, candidates, {"macs": costs}, {"macs": share * total}, gates)


def choices(p: Problem) -> list[dict[str, int]]:
    """Every choice of widths that the gates allow."""
    options = {g: sorted({0, *w} if g in p.gates else w) for g, w in p.candidates.items()}
    found = (dict(zip(options, c, strict=True)) for c in itertools.product(*options.values()))

    def allowed(widths: dict[str, int]) -> bool:
        for group, gate in p.gates.items():
            if (widths[group] > 0) > widths[gate]:
                return False
            if widths[gate] and not widths[group] and 0 not in p.candidates[group]:
                return False
        return True

    return [w for w in found if allowed(w)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.15, 0.35, 0.6, 0.9])
def test_allocation_finds_the_optimum_with_branches(share, seed):
    p = problem(share, seed)
    best = max(p.worth(w) for w in choices(p) if p.fits(w))
    found = allocate(p.scores, p.candidates, p.costs, p.budgets, gates=p.gates, gap=0.0)
    assert p.fits(found.widths())
    assert found.widths() in choices(p)
    assert found.objective == pytest.approx(best)
    assert found.bound >= best - 1e-9
    if share == 0.15:
        assert not found.kept["outer"]


def test_a_budget_that_only_removed_branches_meet(tmp_path):
    model, x = network("residual")
    prepared = prepare(capture(model, (x,)), load_target("host"), 1)
    narrow = {g: min(widths) for g, widths in prepared.candidates.items()}
    budget = 0.8 * sum(c.at(narrow) for c in prepared.macs)
    with pytest.raises(BudgetError, match="smallest reachable"):
        hwprune.prune(model, (x,), macs=budget)
    images = torch.randn(8, 3, 8, 8)
    result = hwprune.prune(model, (x,), macs=budget, branches=True, calibrate=images)
    report = result.report
    assert report["pruned"]["macs"] <= budget
    gone = [b["name"] for b in report["branches"] if not b["kept"]]
    assert gone
    assert result.certificate.passed
    assert np.isfinite(report["fidelity"]["cosine"])
    save_pruned(result, tmp_path / "out")
    again = hwprune.prune(model, (x,), plan=tmp_path / "out" / "plan.json")
    assert again.plan == result.plan
    assert again.report["pruned"]["macs"] == report["pruned"]["macs"]
    loaded = capture(tmp_path / "out" / "model.pt2")
    torch.testing.assert_close(loaded.module(x), result.module(x))
    torch.testing.assert_close(result.apply_to(model)(x), result.module(x))
    again = hwprune.load_pruned(Residual, tmp_path / "out")
    torch.testing.assert_close(again(x), result.module(x))
    assert sum(p.numel() for p in again.parameters()) < report["dense"]["params"]


def test_branches_that_stay_can_be_applied_to_the_model():
    model, x = network("next")
    result = hwprune.prune(model, (x,), macs="90%", branches=True)
    assert all(b["kept"] for b in result.report["branches"])
    torch.testing.assert_close(result.apply_to(model)(x), result.module(x))


@pytest.mark.slow
def test_a_latency_budget_may_remove_branches():
    torch.manual_seed(0)
    blocks = [Block(16, 16) for _ in range(4)]
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *blocks, *ends).eval()
    result = hwprune.prune(net, (torch.randn(1, 3, 32, 32),), latency="45%", branches=True)
    assert [b for b in result.report["branches"] if not b["kept"]]
    assert result.report["ratio"] < 0.7
    assert result.certificate.passed


def test_inspect_lists_them():
    model, x = network("encoder")
    found = hwprune.inspect(model, (x,), branches=True)
    rows = {row["name"]: row for row in found["branches"]}
    mlp = model.layers[0]
    assert rows["branch:layers.0.norm2"]["groups"] == ["layers.0.linear1"]
    wanted = sum(p.numel() for m in (mlp.norm2, mlp.linear1, mlp.linear2) for p in m.parameters())
    assert rows["branch:layers.0.norm2"]["params"] == wanted
    assert hwprune.inspect(model, (x,)) == found
    assert hwprune.inspect(model, (x,), branches=False)["branches"] == []


def random_removal(program: Program, coupling: Coupling, random_: random.Random) -> Plan:
    """Some units of every group, without some branches and what lies within."""
    kept: dict[str, tuple[int, ...]] = {}
    for group in coupling.groups:
        least = min(2 if group.through_norm_statistics else 1, group.width)
        count = random_.randint(least, group.width)
        kept[group.name] = tuple(sorted(random_.sample(range(group.width), count)))
    gone = {b.name for b in coupling.branches if random_.random() < 0.5}
    for branch in coupling.branches:
        kept.setdefault(branch.name, (0,))
        if branch.name in gone:
            inner = [b.name for b in coupling.branches if b.add in branch.nodes]
            kept |= dict.fromkeys([branch.name, *branch.groups, *inner], ())
    return Plan(fingerprint(program), kept, forms=coupling.forms)


def test_a_weight_that_is_tied_to_one_outside_stays():
    torch.manual_seed(0)
    net = Around(lambda net, x: net.c(x + net.b(net.a(x).relu())))
    net.c = nn.Linear(8, 8)
    net.c.weight = net.a.weight
    program = capture(net, (torch.randn(2, 4),))
    coupling = couple(program, branches=True)
    (branch,) = coupling.branches
    assert branch.parameters == {"a.bias", "b.weight", "b.bias"}
    plan = plan_of(program, coupling, {branch.name})
    smaller = rewrite(program, coupling, plan)
    verify(program, coupling, plan, smaller).check()
    assert "c.weight" in dict(smaller.module.named_parameters(remove_duplicate=False))


def test_random_networks_without_some_branches():
    """With any form of grouped convolutions and norms."""
    removed = 0
    for seed in range(80):
        random_ = random.Random(seed)
        program = seeded(seed).program
        forms = {n: random_.choice(KNOWN[n]) for n in ("grouped", "group_norm")}
        coupling = couple(program, branches=True, **forms)
        if seed >= 10 and not coupling.branches:
            continue
        plan = random_removal(program, coupling, random_)
        verify(program, coupling, plan, rewrite(program, coupling, plan), seed=seed).check()
        removed += len(coupling.removed(plan.kept))
    assert removed > 2
